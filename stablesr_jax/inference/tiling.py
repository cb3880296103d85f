"""Aggregation sampling's geometry: overlapping tiles of canvases and their weighted average (3.3, appendix B)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NARROWEST = 8
"""The narrowest tile that the networks take, and what tiles' sides are multiples of, in latent pixels."""


def offsets(size: int, tile: int, overlap: int) -> list[int]:
  """Where tiles start along one side, `tile - overlap` apart; the last one is moved back to end at the border.

  Raises:
    ValueError: The side is shorter than a tile, or longer and the overlap is not smaller than the tile.
  """
  if size < tile:
    raise ValueError(f"a side of {size} is shorter than a tile of {tile}")
  if size == tile:
    return [0]
  if not 0 <= overlap < tile:
    raise ValueError(f"overlap {overlap} must be 0 to {tile - 1}")
  stride = tile - overlap
  count = -(-(size - tile) // stride) + 1
  return [min(i * stride, size - tile) for i in range(count)]


def tile_sides(canvas: tuple[int, int], tile: int, overlap: int) -> tuple[int, int]:
  """The height and width of the tiles of a canvas (height, width): `tile` both, but for narrow canvases.

  In square tiles a narrow one would be mostly padding. Its tiles are narrow, too, and as much longer: of as many
  pixels, so that they cost the same. Of those shapes that span its short side it is the one that needs the fewest
  tiles, and of these the squarest.
  """
  short, long = sorted(canvas)
  best, narrow = (tile, tile), tile
  fewest = len(offsets(max(long, tile), tile, overlap))
  while (narrow := narrow // 2 // NARROWEST * NARROWEST) >= max(short, NARROWEST):
    length = tile**2 // narrow // NARROWEST * NARROWEST
    count = len(offsets(max(long, length), length, overlap))
    if count < fewest:
      best, fewest = (narrow, length), count
  return best if canvas[0] <= canvas[1] else (best[1], best[0])


def grid(canvas: tuple[int, int], tile: tuple[int, int], overlap: int) -> Int[np.ndarray, "t 2"]:
  """The top and left of every tile, int32, row by row."""
  rows, columns = (offsets(size, side, overlap) for size, side in zip(canvas, tile, strict=True))
  return np.array([(y, x) for y in rows for x in columns], np.int32)


def gaussian_weights(height: int, width: int, variance: float = 0.01) -> Float[np.ndarray, "{height} {width}"]:
  """A Gaussian of `variance` in units of the sides squared, float32.

  Its middle is half a pixel low along y, as in the published weights.
  """

  def profile(side: int, middle: float) -> np.ndarray:
    distance = (np.arange(side) - middle) / side
    return np.exp(-(distance**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

  return np.outer(profile(height, height / 2), profile(width, (width - 1) / 2)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Sheet:
  """Canvases of several pictures below each other in one array, of few shapes, so that one program moves them all.

  Attributes:
    tile: The height and width of a tile.
    shape: The height and width of the array.
    tops: The row where each canvas begins.
    canvas: For each row of the array the number of the canvas that it belongs to.
    row: For each row of the array which row of its canvas it is.
    starts: The top and left of every tile on the sheet, (t, 2) int32, canvas by canvas.
    weights: The sum of the tiles' weights at every pixel, (*shape, 1); 1 where no tile lies.
  """

  tile: tuple[int, int]
  shape: tuple[int, int]
  tops: tuple[int, ...]
  canvas: Int[np.ndarray, " h"]
  row: Int[np.ndarray, " h"]
  starts: Int[np.ndarray, "t 2"]
  weights: Float[np.ndarray, "h w 1"]

  @classmethod
  def of(
    cls,
    sizes: Sequence[tuple[int, int]],
    spaces: Sequence[tuple[int, int]],
    tile: tuple[int, int],
    overlap: int,
  ) -> "Sheet":
    """A sheet for canvases of `sizes` (height, width), each in an array of its own of the size in `spaces`.

    Raises:
      ValueError: A canvas is smaller than a tile.
    """
    heights = [height for height, _ in spaces]
    shape = _sheet_side(sum(heights)), _sheet_side(max(width for _, width in spaces))
    tops = np.cumsum([0, *heights[:-1]])
    grids = [grid(size, tile, overlap) + np.array([top, 0], np.int32) for size, top in zip(sizes, tops, strict=True)]
    starts, weights = np.concatenate(grids), np.zeros((*shape, 1), np.float32)
    of_tile = gaussian_weights(*tile)
    for y, x in starts:
      weights[y : y + tile[0], x : x + tile[1], 0] += of_tile
    canvas = np.minimum(np.searchsorted(np.cumsum(heights), np.arange(shape[0]), side="right"), len(heights) - 1)
    row = np.arange(shape[0]) - tops[canvas]
    return cls(
      tile, shape, tuple(map(int, tops)), canvas.astype(np.int32), row.astype(np.int32), starts,
      np.where(weights > 0, weights, 1),
    )  # fmt: skip

  def take(
    self, sheet: Float[Array, "h w c"], first: int, count: int, space: tuple[int, int]
  ) -> Float[Array, "{count} {space[0]} {space[1]} c"]:
    """`count` canvases from the `first`-th on, in arrays of the size `space`."""
    return _take(sheet, np.array(self.tops[first : first + count], np.int32), space=space)


def _sheet_side(side: int) -> int:
  """Powers of two: the fewer shapes, the fewer programs. Large ones waste less than that, for the memory's sake."""
  return 1 << (side - 1).bit_length() if side <= 512 else -(-side // 128) * 128


def split(
  canvas: Float[Array, "h w c"], starts: Int[Array | np.ndarray, "t 2"], tile: tuple[int, int]
) -> Float[Array, "t {tile[0]} {tile[1]} c"]:
  """The tiles of a canvas whose top and left are `starts`."""
  return jax.vmap(lambda start: jax.lax.dynamic_slice(canvas, (*start, 0), (*tile, canvas.shape[-1])))(starts)


def collect(
  total: Float[Array, "h w c"],
  tiles: Float[Array, "t y x c"],
  starts: Int[Array | np.ndarray, "t 2"],
  used: Bool[Array | np.ndarray, " t"],
  weights: Float[Array | np.ndarray, "y x"],
) -> Float[Array, "h w c"]:
  """Adds tiles, weighted, to the sum of those before them.

  They are added one after the other, so that the sum does not depend on how they were batched.

  Args:
    used: Whether a tile counts, or only fills its batch.
  """

  def add(total: jax.Array, placed: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    tile, start, used = placed
    corner = (start[0], start[1], 0)
    before = jax.lax.dynamic_slice(total, corner, tile.shape)
    after = before + jnp.where(used, jnp.asarray(weights)[..., None] * tile, 0)
    return jax.lax.dynamic_update_slice(total, after, corner), None

  return jax.lax.scan(add, total, (tiles, jnp.asarray(starts), jnp.asarray(used)))[0]


@jax.jit(static_argnames=("height", "width"))
def crop(
  image: Float[Array, "h w c"], y: int | jax.Array, x: int | jax.Array, height: int, width: int
) -> Float[Array, "{height} {width} c"]:
  """The part of an image whose top left corner is at (y, x)."""
  return jax.lax.dynamic_slice(image, (y, x, 0), (height, width, image.shape[-1]))


def lay(
  sheet: Float[Array, "h w c"], canvases: Float[Array, "k _ _ c"], tops: Sequence[int] | Int[Array, " k"]
) -> Float[Array, "h w c"]:
  """The sheet with canvases in their places, which begin at the rows `tops`."""
  for canvas, top in zip(canvases, tops, strict=True):
    sheet = jax.lax.dynamic_update_slice(sheet, canvas, (top, 0, 0))
  return sheet


@jax.jit(static_argnames="space")
def _take(sheet: jax.Array, tops: jax.Array, *, space: tuple[int, int]) -> jax.Array:
  return jax.vmap(lambda top: jax.lax.dynamic_slice(sheet, (top, 0, 0), (*space, sheet.shape[-1])))(tops)


class Axis:
  """How a side is cut into overlapping pieces of one length.

  Attributes:
    size: The length of a piece.
    starts: Where pieces begin.
    weights: For each of these what its piece counts, along the side, float32; all together count 1 everywhere.
  """

  def __init__(self, side: int, size: int, overlap: int):
    self.size, self.starts = size, offsets(side, size, min(overlap, size - 1))
    ramp, total = _ramp(size, overlap), np.zeros(side)
    for start in self.starts:
      total[start : start + size] += ramp
    self.weights = {start: (ramp / total[start : start + size]).astype(np.float32) for start in self.starts}


class Blend:
  """Joins large overlapping pieces one after the other, in the host's memory, so that a device has only one of them.

  A piece counts fully in its middle and falls linearly to its edges over the overlap, so that joins do not show.

  Attributes:
    canvas: What is joined so far, (height, width, channels) float32: all of it, once the last piece is added.
  """

  def __init__(self, shape: tuple[int, int, int], rows: Axis, columns: Axis):
    """Pieces of a grid: those that begin at a row and at a column of `rows` and `columns`, where `shape` cuts them."""
    self.canvas = np.zeros(shape, np.float32)
    self._weights = rows.weights, columns.weights

  def add(self, piece: Float[np.ndarray, "h w c"], y: int, x: int) -> None:
    """Adds the piece whose top left corner is at (y, x). It may lie in a frame, of which the piece's sides count."""
    part = self.canvas[y : y + len(self._weights[0][y]), x : x + len(self._weights[1][x])]
    height, width = part.shape[:2]
    weights = self._weights[0][y][:height, None] * self._weights[1][x][:width]
    # What lies beyond a piece in its frame has no meaning, and may be anything.
    part += piece[:height, :width] * weights[..., None]


def _ramp(side: int, overlap: int) -> np.ndarray:
  edge = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)
  return np.minimum(edge / max(overlap, 1), 1).astype(np.float32)
