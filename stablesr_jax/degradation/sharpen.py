"""Unsharp masking of the high-resolution image."""

import jax
import jax.numpy as jnp
import numpy as np


def unsharp_mask(planes: jax.Array, weight: float = 0.5, radius: int = 51, threshold: float = 10.0) -> jax.Array:
  """Adds `weight` of the detail a Gaussian takes away, softly limited to where there is more of it than a threshold.

  Args:
    planes: (..., H, W) float32 in [0, 1].
    radius: side of the Gaussian window in pixels.
    threshold: of 255.

  Returns:
    (..., H, W) float32 in [0, 1].
  """
  window = _gaussian_window(radius)
  detail = planes - _filter_axes(planes, window)
  mask = _filter_axes((jnp.abs(detail) * 255 > threshold).astype(planes.dtype), window)
  sharp = jnp.clip(planes + weight * detail, 0.0, 1.0)
  return mask * sharp + (1 - mask) * planes


def _gaussian_window(radius: int) -> np.ndarray:
  margin = radius // 2
  sigma = 0.3 * (margin - 1) + 0.8  # OpenCV's choice for a window of this size
  window = np.exp(-(np.arange(-margin, margin + 1) ** 2) / (2 * sigma**2))
  return (window / window.sum()).astype(np.float32)


def _filter_axes(planes: jax.Array, window: np.ndarray, block: int = 64) -> jax.Array:
  """Filters rows and columns of (..., H, W), borders reflected.

  As matrix products that make `block` entries each, since XLA on CPU is slow at convolutions of one channel.
  """
  margin = len(window) // 2
  height, width = planes.shape[-2:]
  matrix = np.zeros((block, block + 2 * margin), np.float32)
  for i in range(block):
    matrix[i, i : i + len(window)] = window
  precision = jax.lax.Precision.HIGHEST

  def spans(length):  # where each block's entries come from, (blocks, block + 2 * margin)
    source = np.pad(np.arange(length), (margin, margin + -length % block), mode="reflect")
    return np.arange(0, length, block)[:, None] + np.arange(matrix.shape[1]), source

  starts, source = spans(height)
  planes = jnp.einsum("pq,...bqw->...bpw", matrix, planes[..., source[starts], :], precision=precision)
  planes = planes.reshape(*planes.shape[:-3], -1, width)[..., :height, :]
  starts, source = spans(width)
  planes = jnp.einsum("...bq,pq->...bp", planes[..., source[starts]], matrix, precision=precision)
  return planes.reshape(*planes.shape[:-2], -1)[..., :width]
