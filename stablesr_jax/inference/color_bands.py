"""Colour correction of a large picture, a band of rows at a time: what `color` does to it, and no second copy of it."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Array, Float

from stablesr_jax.inference import color, frames

# The rows that bands see beside their own: those that the blurs of a wavelet reach, 1 + 2 + ... + 16.
_REACH = 31
# The pixels of a band, and its fewest rows. More waste less on what bands share.
_BAND, _FEWEST_ROWS = 1 << 21, 64
# What `color.adain` adds to variances.
_EPSILON = 1e-5

# Gives for the number of a row, and of rows, those of a picture, in [0, 1].
Rows = Callable[[int, int], Float[Array, "_ w 3"]]


def fix_in_place(canvas: Float[np.ndarray, "h w 3"], style: Rows, name: str, weight: float | np.floating = 1.0) -> None:
  """Corrects a picture by one of `color.COLOR_FIXES`, and clips it to [0, 1].

  Args:
    canvas: The picture, about [0, 1]; then the corrected one.
    style: The picture that the colours are taken from; beyond its last row, anything.
    weight: The share of the corrected picture in the result, 0 to 1.
  """
  rows = min(max(_BAND // canvas.shape[1], _FEWEST_ROWS), len(canvas))
  if name == "adain":
    _adain(canvas, style, rows, weight)
  elif name != "none":
    _local(canvas, style, rows, name, weight)
  np.clip(canvas, 0, 1, out=canvas)


def _adain(canvas: Float[np.ndarray, "h w 3"], style: Rows, rows: int, weight: float | np.floating) -> None:
  """`color.adain`: first the statistics of all, then each band by them."""
  height, width = canvas.shape[:2]
  tops = range(0, height, rows)
  like = (np.asarray(style(top, rows))[: height - top] for top in tops)
  style_mean, style_std = _statistics(like, height * width)
  mean, std = _statistics((canvas[top : top + rows] for top in tops), height * width)
  gain = style_std / std
  factor = (weight * gain + 1 - weight).astype(np.float32)
  shift = (weight * (style_mean - mean * gain)).astype(np.float32)
  for top in tops:
    band = canvas[top : top + rows]
    band *= factor
    band += shift


def _statistics(bands: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
  """The mean and the standard deviation of each channel."""
  total, squares = np.zeros(3), np.zeros(3)
  for band in bands:
    values = band.astype(np.float64)
    total += values.sum(axis=(0, 1))
    squares += np.square(values).sum(axis=(0, 1))
  mean = total / count
  return mean, np.sqrt(np.maximum(squares - count * mean**2, 0) / max(count - 1, 1) + _EPSILON)


def _local(canvas: Float[np.ndarray, "h w 3"], style: Rows, rows: int, name: str, weight: float | np.floating) -> None:
  """A correction that goes by what is near, for bands that see as much around them as matters."""
  height, width = canvas.shape[:2]
  above = canvas[:0]  # the rows before a band, as they were
  for top in range(0, height, rows):
    band = canvas[top : top + rows]
    seen = np.concatenate([above, band, canvas[top + rows : top + rows + _REACH]])
    low = style(top - len(above), rows + 2 * _REACH)
    sides = np.array([[len(seen), width]], np.int32)
    [fixed] = color.fix(frames.put(seen, (rows + 2 * _REACH, width))[None], low[None], name, sides, np.float32(weight))
    first = len(above)
    above = seen[: first + len(band)][-_REACH:]
    canvas[top : top + rows] = np.asarray(fixed)[first : first + len(band)]
