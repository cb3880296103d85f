"""Colour correction of a restored image against its enlarged input (3.3, eq. 2-5; `lab` is ours).

Images are (B, H, W, C), of three channels where nothing else is said.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Image = Float[Array, "b h w c"]
# The height and width of each picture in its frame; None: the frame's.
Sides = Int[Array | np.ndarray, "b 2"] | None


def adain(content: Image, style: Image, sides: Sides = None, epsilon: float = 1e-5) -> Image:
  """Gives `content` the mean and standard deviation of `style`, channel by channel (eq. 2).

  Args:
    content: The images to correct, of any range.
    style: The images that they take them from, of the same range.
    epsilon: The number that is added to the (unbiased) variances.
  """
  counted = None
  if sides is not None:
    counted = _inside(content, sides, 1) & _inside(content, sides, 2)

  def statistics(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean, var = (
      of(axis=(1, 2), keepdims=True, where=counted) for of in (image.mean, functools.partial(image.var, ddof=1))
    )
    return mean, jnp.sqrt(var + epsilon)

  (content_mean, content_std), (style_mean, style_std) = statistics(content), statistics(style)
  return (content - content_mean) / content_std * style_std + style_mean


def wavelet(content: Image, style: Image, sides: Sides = None, levels: int = 5) -> Image:
  """The high frequencies of `content` on the low frequencies of `style` (eq. 3-5)."""
  return wavelet_split(content, sides, levels)[0] + wavelet_split(style, sides, levels)[1]


def wavelet_split(image: Image, sides: Sides = None, levels: int = 5) -> tuple[Image, Image]:
  """Splits images into what `levels` dilated blurs take away and what they leave: (high, low), high + low = image."""
  low = image
  for i in range(levels):
    low = _blur(low, sides, 2**i)
  return image - low, low


def _blur(image: jax.Array, sides: Sides, dilation: int) -> jax.Array:
  """[1 2 1; 2 4 2; 1 2 1] / 16 with its taps `dilation` apart, borders replicated."""
  for axis in (1, 2):
    size = image.shape[axis]
    if sides is not None:  # the border is within the frame
      last = jnp.expand_dims(jnp.asarray(sides)[:, axis - 1] - 1, (1, 2, 3))
      image = jnp.where(_inside(image, sides, axis), image, jnp.take_along_axis(image, last, axis=axis))
    pad = [(0, 0)] * image.ndim
    pad[axis] = (dilation, dilation)
    padded = jnp.pad(image, pad, mode="edge")
    before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    after = jax.lax.slice_in_dim(padded, 2 * dilation, 2 * dilation + size, axis=axis)
    image = 0.25 * before + 0.5 * image + 0.25 * after
  return image


def _inside(image: jax.Array, sides: Int[Array | np.ndarray, "b 2"], axis: int) -> jax.Array:
  """Which rows (axis 1) or columns (axis 2) are the pictures'."""
  inside = jnp.arange(image.shape[axis])[None] < jnp.asarray(sides)[:, axis - 1, None]
  return jnp.expand_dims(inside, (3 - axis, 3))


def lab(content: Image, style: Image, sides: Sides = None, levels: int = 5) -> Image:
  """The lightness of `content`, and in CIELAB the low frequencies of the chroma of `style` below the high ones of
  `content`.

  Only colours are corrected: light and shadow stay as they were restored, where `wavelet` takes the broad ones from the
  input. Frequencies and not means, as a cast that covers a part of the picture alone is none of the whole's mean.
  """
  (content, style), channels = (to_lab(jnp.clip(image, 0, 1)) for image in (content, style)), slice(1, None)
  chroma = wavelet(content[..., channels], style[..., channels], sides, levels)
  return from_lab(jnp.concatenate([content[..., :1], chroma], axis=-1))


def to_lab(image: Image) -> Image:
  """sRGB in [0, 1] to CIELAB of white D65: L* in [0, 100], a* and b* within about 110 of 0."""
  linear = jnp.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
  xyz = _mixed(linear, _TO_XYZ / _WHITE[:, None])
  x, y, z = jnp.moveaxis(jnp.where(xyz > _KNEE**3, jnp.cbrt(xyz), xyz / (3 * _KNEE**2) + 4 / 29), -1, 0)
  return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(image: Image) -> Image:
  """CIELAB of white D65 to sRGB in [0, 1]; colours that it does not have are clipped, channel by channel."""
  light, a, b = jnp.moveaxis(image, -1, 0)
  y = (light + 16) / 116
  roots = jnp.stack([y + a / 500, y, y - b / 200], axis=-1)
  xyz = jnp.where(roots > _KNEE, roots**3, 3 * _KNEE**2 * (roots - 4 / 29))
  linear = jnp.clip(_mixed(xyz, np.linalg.inv(_TO_XYZ) * _WHITE), 0, 1)
  return jnp.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _mixed(image: Image, matrix: np.ndarray) -> Image:
  return jnp.einsum("bhwc,dc->bhwd", image, np.float32(matrix), precision=jax.lax.Precision.HIGHEST)


# Linear sRGB to CIE XYZ (IEC 61966-2-1), the white D65, and where CIELAB's cube root turns into a line.
_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = np.array([0.95047, 1.0, 1.08883])
_KNEE = 6 / 29


COLOR_FIXES: dict[str, Callable[[jax.Array, jax.Array, Sides], jax.Array]] = {
  "adain": adain,
  "wavelet": wavelet,
  "lab": lab,
  "none": lambda content, style, sides: content,
}


@functools.partial(jax.jit, static_argnames="name")
def fix(content: Image, style: Image, name: str, sides: Sides = None, weight: float | Float[Array, ""] = 1.0) -> Image:
  """Corrects `content` by one of COLOR_FIXES.

  Args:
    weight: The share of the corrected image in the result, 0 to 1.
  """
  return weight * COLOR_FIXES[name](content, style, sides) + (1 - weight) * content
