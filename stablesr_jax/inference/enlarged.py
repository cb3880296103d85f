"""A picture at its result's size, of which parts are made when they are needed: the whole is never in memory."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stablesr_jax import pixels
from stablesr_jax.inference import frames
from stablesr_jax.inference.picture_sizes import margins

# Beyond what taps reach by their definition, as their place is rounded.
_MARGIN = 1


class Enlarged:
  """A picture, enlarged bicubic as in training, or shrunk with antialiasing, in the middle of a canvas.

  Attributes:
    canvas: The canvas's height and width.
  """

  def __init__(self, image: Float[np.ndarray, "h w 3"], size: tuple[int, int], canvas: tuple[int, int] | None = None):
    """A picture in [0, 1], the height and width to bring it to, and the canvas's, which are those by default."""
    self._image, self._size, self.canvas = image, size, canvas or size
    self._origin = margins(size, self.canvas)
    self._source = image.shape[0], image.shape[1]
    self._way: Literal["enlarge", "shrink"] = (
      "shrink" if size[0] < image.shape[0] or size[1] < image.shape[1] else "enlarge"
    )

  def part(self, top: int, left: int, shape: tuple[int, int]) -> Float[Array, "{shape[0]} {shape[1]} 3"]:
    """The part of the canvas with this corner and shape, in [0, 1]. Around the picture lies its reflection, to and fro
    where it is short, beyond the canvas, too."""
    corner = top - self._origin[0], left - self._origin[1]
    entries = [
      frames.mirrored(first + np.arange(count), side)
      for first, count, side in zip(corner, shape, self._size, strict=True)
    ]
    spans = [self._span(axis, entries[axis]) for axis in (0, 1)]
    crop = self._image[tuple(slice(*span) for span in spans)]
    return _resize(
      frames.put(crop, frames.around((crop.shape[0], crop.shape[1]))),
      np.array(self._source, np.int32),
      np.array(self._size, np.int32),
      np.array([first for first, _ in spans], np.int32),
      *(numbers.astype(np.int32) for numbers in entries),
      way=self._way,
    )

  def _span(self, axis: int, entries: Int[np.ndarray, " n"]) -> tuple[int, int]:
    """The first of the source's entries that these are made of, and the end of them."""
    step = self._source[axis] / self._size[axis]
    reach = math.ceil(2 * max(step, 1)) + _MARGIN
    first, last = ((number + 0.5) * step - 0.5 for number in (entries.min(), entries.max()))
    return max(math.floor(first) - reach, 0), min(math.ceil(last) + reach + 1, self._source[axis])


@functools.partial(jax.jit, static_argnames="way")
def _resize(
  crop: Float[Array, "h w 3"],
  source: Int[Array, "2"],
  target: Int[Array, "2"],
  origin: Int[Array, "2"],
  rows: Int[Array, " n"],
  columns: Int[Array, " m"],
  *,
  way: Literal["enlarge", "shrink"],
) -> Float[Array, "n m 3"]:
  planes, entries = jnp.moveaxis(crop, -1, 0), (rows, columns)
  if way == "shrink":
    down, across = (
      pixels.antialiased(crop.shape[axis], source[axis], target[axis], entries[axis], origin[axis]) for axis in (0, 1)
    )
    part = jnp.einsum("yh,chw,xw->cyx", down, planes, across, precision=jax.lax.Precision.HIGHEST)
  else:
    taps = []
    for axis in (0, 1):
      index, weight = pixels.bicubic_taps(source[axis], target[axis], entries[axis])
      taps.append((index - origin[axis], weight))
    part = pixels.apply_taps(planes, *taps)
  return jnp.clip(jnp.moveaxis(part, 0, -1), 0, 1)
