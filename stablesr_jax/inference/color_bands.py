"""Colour correction of a large picture, a block at a time: what `color` does to it, and no second copy of it."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Array, Float

from stablesr_jax.inference import color, frames

# What a block sees around its own pixels: what the blurs of a wavelet reach, 1 + 2 + ... + 16.
_REACH = 31
# The rows of a band, and the columns of its blocks. More would waste less on what blocks share, and take more memory.
_ROWS, _COLUMNS = 512, 1024
# What `color.adain` adds to variances.
_EPSILON = 1e-5

# Gives the part of a picture with a top, a left and a shape, in [0, 1].
Part = Callable[[int, int, tuple[int, int]], Float[Array, "h w 3"]]


def fix_in_place(canvas: Float[np.ndarray, "h w 3"], style: Part, name: str, weight: float | np.floating = 1.0) -> None:
  """Corrects a picture by one of `color.COLOR_FIXES`, and clips it to [0, 1].

  Args:
    canvas: The picture, about [0, 1]; then the corrected one.
    style: The picture that the colours are taken from; beyond it, anything.
    weight: The share of the corrected picture in the result, 0 to 1.
  """
  if name == "adain":
    _adain(canvas, style, weight)
  elif name != "none":
    _local(canvas, style, name, weight)
  np.clip(canvas, 0, 1, out=canvas)


def _adain(canvas: Float[np.ndarray, "h w 3"], style: Part, weight: float | np.floating) -> None:
  """`color.adain`: first the statistics of all, then each band by them."""
  height, width = canvas.shape[:2]
  corners = [(top, left) for top in range(0, height, _ROWS) for left in range(0, width, _COLUMNS)]
  like = (np.asarray(style(*at, (_ROWS, _COLUMNS)))[: height - at[0], : width - at[1]] for at in corners)
  own = (canvas[top : top + _ROWS, left : left + _COLUMNS] for top, left in corners)
  (style_mean, style_std), (mean, std) = (_statistics(blocks, height * width) for blocks in (like, own))
  gain = style_std / std
  canvas *= (weight * gain + 1 - weight).astype(np.float32)
  canvas += (weight * (style_mean - mean * gain)).astype(np.float32)


def _statistics(blocks: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
  """The mean and the standard deviation of each channel."""
  total, squares = np.zeros(3), np.zeros(3)
  for block in blocks:
    values = block.astype(np.float64)
    total += values.sum(axis=(0, 1))
    squares += np.square(values).sum(axis=(0, 1))
  mean = total / count
  return mean, np.sqrt(np.maximum(squares - count * mean**2, 0) / max(count - 1, 1) + _EPSILON)


def _local(canvas: Float[np.ndarray, "h w 3"], style: Part, name: str, weight: float | np.floating) -> None:
  """A correction that goes by what is near, for blocks that see as much around them as matters."""
  height, width = canvas.shape[:2]
  frame = min(_ROWS, height) + 2 * _REACH, min(_COLUMNS, width) + 2 * _REACH
  above = canvas[:0]  # the rows before a band, as they were
  for top in range(0, height, _ROWS):
    rows, first = min(_ROWS, height - top), len(above)
    seen = np.concatenate([above, canvas[top : top + rows + _REACH]])
    for left in range(0, width, _COLUMNS):
      start = max(left - _REACH, 0)
      block = seen[:, start : left + _COLUMNS + _REACH]
      sides, low = np.array([block.shape[:2]], np.int32), style(top - first, start, frame)
      [fixed] = color.fix(frames.put(block, frame)[None], low[None], name, sides, np.float32(weight))
      target = canvas[top : top + rows, left : left + _COLUMNS]
      target[:] = np.asarray(fixed)[first : first + rows, left - start : left - start + target.shape[1]]
    above = seen[: first + rows][-_REACH:]
