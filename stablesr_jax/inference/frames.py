"""Pictures of any size in arrays of few shapes: a picture lies at the top left of a frame.

Programs are compiled for frames and are told the picture's sides, so that a new size compiles nothing. What lies beyond
the picture has no meaning, and changes nothing within it.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from stablesr_jax import pixels

SMALLEST = 32
"""The shortest side of a frame of pixels."""

# How many numbers are drawn at once for a large canvas: a power of two, as the rows of sheets are.
_DRAWN_AT_ONCE = 1 << 22


def length(size: int, smallest: int) -> int:
  """The shortest side of a frame that holds `size`: 1, 1.5, 2, 3, 4, 6, 8, ... times `smallest`, which is even."""
  side = smallest
  while side < size:
    side += side // 2 if side.bit_count() == smallest.bit_count() else side // 3
  return side


def around(size: tuple[int, int]) -> tuple[int, int]:
  """The sides of the frame of a picture (height, width), in pixels."""
  return length(size[0], SMALLEST), length(size[1], SMALLEST)


def put(picture: Float[np.ndarray, "h w c"], frame: tuple[int, int]) -> Float[np.ndarray, "{frame[0]} {frame[1]} c"]:
  """A picture in its frame, black beyond it."""
  return np.pad(picture, [(0, frame[axis] - picture.shape[axis]) for axis in (0, 1)] + [(0, 0)])


@functools.partial(jax.jit, static_argnames=("frame", "way"))
def resize(
  picture: Float[Array | np.ndarray, "h w 3"],
  source: Int[Array | np.ndarray, "2"],
  target: Int[Array | np.ndarray, "2"],
  *,
  frame: tuple[int, int],
  way: Literal["enlarge", "shrink"],
) -> Float[Array, "{frame[0]} {frame[1]} 3"]:
  """Brings a picture in [0, 1] to another size: enlarged bicubic as in training, or shrunk with antialiasing."""
  planes = jnp.moveaxis(picture, -1, 0)
  axes = range(2)
  if way == "shrink":
    rows, columns = (pixels.antialiased(picture.shape[axis], source[axis], target[axis], frame[axis]) for axis in axes)
    resized = jnp.einsum("yh,chw,xw->cyx", rows, planes, columns, precision=jax.lax.Precision.HIGHEST)
  else:
    taps = (pixels.bicubic_taps(source[axis], target[axis], frame[axis]) for axis in axes)
    resized = pixels.apply_taps(planes, *taps)
  return jnp.clip(jnp.moveaxis(resized, 0, -1), 0, 1)


def way(before: tuple[int, int], after: tuple[int, int]) -> Literal["enlarge", "shrink"]:
  """How a picture is brought from a height and width to others."""
  return "shrink" if after[0] < before[0] or after[1] < before[1] else "enlarge"


def mirrored(entries: Int[np.ndarray, " n"], side: int) -> Int[np.ndarray, " n"]:
  """Which entries of a side lie at these places, where it goes on beyond its end as its reflection, to and fro."""
  period = max(2 * (side - 1), 1)
  entries = entries % period
  return np.minimum(entries, period - entries) if side > 1 else np.zeros_like(entries)


def reflect(picture: Float[Array, "h w c"], sides: Int[Array | np.ndarray, "2"]) -> Float[Array, "h w c"]:
  """Fills the frame beyond the bottom and the right with the picture's reflection, to and fro where that is short."""
  for axis in (0, 1):
    last = sides[axis] - 1
    index = jnp.arange(picture.shape[axis]) % jnp.maximum(2 * last, 1)
    picture = jnp.take(picture, jnp.where(index <= last, index, 2 * last - index), axis=axis)
  return picture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Noise:
  """Standard normal noise in which a pixel's depends on its picture's key and on its place in the picture alone.

  Attributes:
    keys: The pictures' keys.
    picture: For each row the number of its picture.
    row: For each row which of its picture it is, below 2**16 as the width.
    shape: The width and the channels.
  """

  keys: Sequence[Key[Array, ""]]
  picture: Int[Array | np.ndarray, " h"]
  row: Int[Array | np.ndarray, " h"]
  shape: tuple[int, int] = dataclasses.field(metadata={"static": True})

  def __call__(self, *purpose: int | Int[Array, ""]) -> Float[Array, "h {self.shape[0]} {self.shape[1]}"]:
    """Noise for a purpose: numbers that are folded into the keys, one after the other."""
    keys = jnp.stack(self.keys)
    for number in purpose:
      keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    places = self.row[:, None] * 2**16 + jnp.arange(self.shape[0])[None]
    draw = lambda key, place: jax.random.normal(jax.random.fold_in(key, place), self.shape[1:])
    draw_row = jax.vmap(draw, (None, 0))
    # Drawing takes several times the memory of what is drawn.
    at_once = max(_DRAWN_AT_ONCE // math.prod(self.shape), 1)
    if len(places) <= at_once:
      return jax.vmap(draw_row)(keys[self.picture], places)
    return jax.lax.map(lambda row: draw_row(keys[row[0]], row[1]), (self.picture, places), batch_size=at_once)
