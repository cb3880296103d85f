"""Colour correction of a restored image against its enlarged input (3.3, eq. 2-5). Images are (..., H, W, 3)."""

import jax
import jax.numpy as jnp


def adain(content: jax.Array, style: jax.Array, epsilon: float = 1e-5) -> jax.Array:
  """Gives `content` the mean and standard deviation of `style`, channel by channel (eq. 2).

  Args:
    content, style: any range, the same for both; sizes may differ.
    epsilon: added to the (unbiased) variances.
  """

  def statistics(image):
    mean = image.mean((-3, -2), keepdims=True)
    return mean, jnp.sqrt(image.var((-3, -2), keepdims=True, ddof=1) + epsilon)

  (content_mean, content_std), (style_mean, style_std) = statistics(content), statistics(style)
  return (content - content_mean) / content_std * style_std + style_mean


def wavelet(content: jax.Array, style: jax.Array, levels: int = 5) -> jax.Array:
  """The high frequencies of `content` on the low frequencies of `style`, of the same size (eq. 3-5)."""
  return wavelet_split(content, levels)[0] + wavelet_split(style, levels)[1]


def wavelet_split(image: jax.Array, levels: int = 5) -> tuple[jax.Array, jax.Array]:
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
