"""Pictures of any size in arrays of few shapes: a picture lies at the top left of a frame.

Programs are compiled for frames and are told the picture's sides, so that a new size compiles nothing. What lies beyond
the picture has no meaning, and changes nothing within it.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

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


def mirrored(entries: Int[np.ndarray, " n"], side: int) -> Int[np.ndarray, " n"]:
  """Which entries of a side lie at these places, where it goes on beyond its ends as its reflection, to and fro."""
  period = max(2 * (side - 1), 1)
  entries = entries % period
  return np.minimum(entries, period - entries) if side > 1 else np.zeros_like(entries)


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
