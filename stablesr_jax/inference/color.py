"""Colour correction of a restored image against its enlarged input (3.3, eq. 2-5). Images are (B, H, W, 3)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Image = Float[Array, "b h w 3"]
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


COLOR_FIXES: dict[str, Callable[[jax.Array, jax.Array, Sides], jax.Array]] = {
  "adain": adain,
  "wavelet": wavelet,
  "none": lambda content, style, sides: content,
}


@functools.partial(jax.jit, static_argnames="name")
def fix(content: Image, style: Image, name: str, sides: Sides = None) -> Image:
  """Corrects `content` by one of COLOR_FIXES."""
  return COLOR_FIXES[name](content, style, sides)
