"""Colour correction of a restored image against its enlarged input (3.3, eq. 2-5). Images are (..., H, W, 3)."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Image = Float[Array, "*b h w 3"]


def adain(content: Image, style: Float[Array, "*b h2 w2 3"], epsilon: float = 1e-5) -> Image:
  """Gives `content` the mean and standard deviation of `style`, channel by channel (eq. 2).

  Args:
    content: The image to correct, of any range.
    style: The image that it takes them from, of the same range; its size may differ.
    epsilon: The number that is added to the (unbiased) variances.
  """

  def statistics(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    mean = image.mean((-3, -2), keepdims=True)
    return mean, jnp.sqrt(image.var((-3, -2), keepdims=True, ddof=1) + epsilon)

  (content_mean, content_std), (style_mean, style_std) = statistics(content), statistics(style)
  return (content - content_mean) / content_std * style_std + style_mean


def wavelet(content: Image, style: Image, levels: int = 5) -> Image:
  """The high frequencies of `content` on the low frequencies of `style`, of the same size (eq. 3-5)."""
  return wavelet_split(content, levels)[0] + wavelet_split(style, levels)[1]


def wavelet_split(image: Image, levels: int = 5) -> tuple[Image, Image]:
  """Splits an image into what `levels` dilated blurs take away and what they leave: (high, low), high + low = image."""
  low = image
  for i in range(levels):
    low = _blur(low, 2**i)
  return image - low, low


def _blur(image: jax.Array, dilation: int) -> jax.Array:
  """[1 2 1; 2 4 2; 1 2 1] / 16 with its taps `dilation` apart, borders replicated."""
  for axis in (-3, -2):
    size = image.shape[axis]
    pad = [(0, 0)] * image.ndim
    pad[axis] = (dilation, dilation)
    padded = jnp.pad(image, pad, mode="edge")
    before = jax.lax.slice_in_dim(padded, 0, size, axis=axis % image.ndim)
    after = jax.lax.slice_in_dim(padded, 2 * dilation, 2 * dilation + size, axis=axis % image.ndim)
    image = 0.25 * before + 0.5 * image + 0.25 * after
  return image


COLOR_FIXES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
  "adain": adain,
  "wavelet": wavelet,
  "none": lambda content, style: content,
}


@functools.partial(jax.jit, static_argnames="name")
def fix(content: Image, style: Image, name: str) -> Image:
  """Corrects `content` by one of COLOR_FIXES."""
  return COLOR_FIXES[name](content, style)
