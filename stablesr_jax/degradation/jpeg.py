"""JPEG's losses: 4:2:0 chroma and quantised 8x8 cosine transforms, without the entropy coding."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# The quantisation tables of the JPEG standard's annex K, at quality 50. The published simulation takes luma's the other
# way round, so that here columns are vertical frequencies; chroma's is symmetric.
LUMA_TABLE = np.array(
  [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
  ],
  np.float32,
).T
CHROMA_TABLE = np.full((8, 8), 99, np.float32)
CHROMA_TABLE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def compress(planes: jax.Array, quality) -> jax.Array:
  """What is left of an image after JPEG at a quality.

  Args:
    planes: (..., 3, H, W) float32 RGB; values are clipped to [0, 1]. Sides are filled with zeros to multiples of 16, so
      an image at the top left of larger planes that are zero elsewhere comes out as it would alone.
    quality: 1 to 100, scalar or (...), may be traced.

  Returns:
    (..., 3, H, W) float32 in [0, 1].
  """
  height, width = planes.shape[-2:]
  padding = [(0, 0)] * (planes.ndim - 2) + [(0, -height % 16), (0, -width % 16)]
  planes = 255 * jnp.pad(jnp.clip(planes, 0.0, 1.0), padding)
  quality = jnp.asarray(quality, jnp.float32)
  factor = jnp.where(quality < 50, 50 / quality, 2 - quality / 50)
  # Quality 100 would divide by zero; this leaves all but float32's rounding.
  factor = jnp.maximum(factor, 1e-3)

  red, green, blue = planes[..., 0, :, :], planes[..., 1, :, :], planes[..., 2, :, :]
  luma = 0.299 * red + 0.587 * green + 0.114 * blue - 128
  blue_difference = -0.168736 * red - 0.331264 * green + 0.5 * blue
  red_difference = 0.5 * red - 0.418688 * green - 0.081312 * blue
  luma = _quantised(luma[..., None, :, :], _DCT, _DCT.T, LUMA_TABLE, factor)[..., 0, :, :] + 128
  chroma = jnp.stack([blue_difference, red_difference], -3)
  # Halving and doubling chroma are linear too, so they are folded into the transforms.
  chroma = _quantised(chroma, _DCT @ _HALVE, _DOUBLE @ _DCT.T, CHROMA_TABLE, factor)
  blue_difference, red_difference = chroma[..., 0, :, :], chroma[..., 1, :, :]

  red = luma + 1.402 * red_difference
  green = luma - 0.344136 * blue_difference - 0.714136 * red_difference
  blue = luma + 1.772 * blue_difference
  planes = jnp.clip(jnp.stack([red, green, blue], -3) / 255, 0.0, 1.0)
  return planes[..., :height, :width]


def _cosines() -> np.ndarray:
  """The orthonormal cosine transform of 8 entries; rows are frequencies."""
  frequency, position = np.arange(8)[:, None], np.arange(8)[None, :]
  matrix = np.cos((2 * position + 1) * frequency * math.pi / 16) / 2
  matrix[0] /= math.sqrt(2)
  return matrix


_DCT = _cosines()
_DOUBLE = np.repeat(np.eye(8), 2, axis=0)
_HALVE = _DOUBLE.T / 2


def _quantised(planes: jax.Array, forward: np.ndarray, backward: np.ndarray, table: np.ndarray, factor) -> jax.Array:
  """Transforms blocks of (..., C, H, W), rounds to multiples of the table times the factor and transforms back."""
  coefficients = _on_blocks(planes, forward)
  height, width = coefficients.shape[-2:]
  blocks = coefficients.reshape(*planes.shape[:-2], height // 8, 8, width // 8, 8)
  # (..., 1, 1, 8, 1, 8), in front as many axes as the image has
  factor = factor.reshape(*[1] * (planes.ndim - 3 - factor.ndim), *factor.shape, 1, 1, 1, 1, 1)
  step = factor * table.reshape(*[1] * (factor.ndim - 3), 8, 1, 8)
  return _on_blocks((jnp.round(blocks / step) * step).reshape(coefficients.shape), backward)


def _on_blocks(planes: jax.Array, matrix: np.ndarray) -> jax.Array:
  """matrix @ block @ matrix^T for each square block of (..., H, W)."""
  matrix, precision = matrix.astype(np.float32), jax.lax.Precision.HIGHEST
  into = matrix.shape[1]
  planes = planes.reshape(*planes.shape[:-2], -1, into, planes.shape[-1])
  planes = jnp.einsum("pq,...bqw->...bpw", matrix, planes, precision=precision)
  planes = planes.reshape(*planes.shape[:-3], -1, planes.shape[-1] // into, into)
  planes = jnp.einsum("...bq,pq->...bp", planes, matrix, precision=precision)
  return planes.reshape(*planes.shape[:-2], -1)
