"""Aggregation sampling's geometry: overlapping tiles of a canvas and their weighted average (3.3, appendix B)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def offsets(size: int, tile: int, overlap: int) -> list[int]:
  """Where tiles start along one side, `tile - overlap` apart; the last one is moved back to end at the border.

  Raises:
    ValueError: The side is shorter than a tile, or the overlap is not smaller than the tile.
  """
  if size < tile:
    raise ValueError(f"a side of {size} is shorter than a tile of {tile}")
  if not 0 <= overlap < tile:
    raise ValueError(f"overlap {overlap} must be 0 to {tile - 1}")
  stride = tile - overlap
  count = -(-(size - tile) // stride) + 1
  return [min(i * stride, size - tile) for i in range(count)]


def grid(height: int, width: int, tile: int, overlap: int) -> Int[np.ndarray, "t 2"]:
  """The top and left of every tile, int32, row by row."""
  rows, columns = offsets(height, tile, overlap), offsets(width, tile, overlap)
  return np.array([(y, x) for y in rows for x in columns], np.int32)


def gaussian_weights(tile: int, variance: float = 0.01) -> Float[np.ndarray, "{tile} {tile}"]:
  """A Gaussian of `variance` in units of the side squared, float32.

  Its middle is half a pixel low along y, as in the published weights.
  """

  def profile(middle: float) -> np.ndarray:
    distance = (np.arange(tile) - middle) / tile
    return np.exp(-(distance**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

  return np.outer(profile(tile / 2), profile((tile - 1) / 2)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="tile")
def split(
  canvas: Float[Array, "h w c"], starts: Int[Array | np.ndarray, "t 2"], tile: int
) -> Float[Array, "t {tile} {tile} c"]:
  """The tiles of a canvas whose top and left are `starts`."""
  return jax.vmap(lambda start: crop(canvas, start[0], start[1], tile, tile))(starts)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def crop(
  image: Float[Array, "h w c"], y: int | jax.Array, x: int | jax.Array, height: int, width: int
) -> Float[Array, "{height} {width} c"]:
  """The part of an image whose top left corner is at (y, x)."""
  return jax.lax.dynamic_slice(image, (y, x, 0), (height, width, image.shape[-1]))


@functools.partial(jax.jit, static_argnames=("height", "width"))
def aggregate(
  tiles: Float[Array, "t s s c"],
  starts: Int[Array | np.ndarray, "t 2"],
  weights: Float[Array | np.ndarray, "s s"],
  *,
  height: int,
  width: int,
) -> Float[Array, "{height} {width} c"]:
  """The average of tiles where they overlap, with positive weights.

  Tiles are added in order, so the sum does not depend on how they were batched.
  """

  def add(canvases, placed):
    tile, start = placed

    def put(canvas: jax.Array, value: jax.Array) -> jax.Array:
      corner = (start[0], start[1], 0)
      return jax.lax.dynamic_update_slice(canvas, jax.lax.dynamic_slice(canvas, corner, value.shape) + value, corner)

    return (put(canvases[0], tile), put(canvases[1], jnp.asarray(weights)[..., None])), None

  weighted = jax.vmap(lambda tile: tile * weights[..., None])(tiles)
  empty = (jnp.zeros((height, width, tiles.shape[-1]), tiles.dtype), jnp.zeros((height, width, 1), weights.dtype))
  (total, norm), _ = jax.lax.scan(add, empty, (weighted, starts))
  return total / norm


class Blend:
  """Joins large overlapping pieces one after the other, so that only one of them is in memory at a time.

  A piece counts fully in its middle and falls linearly to its edges over the overlap, so that joins do not show.
  """

  def __init__(self, shape: tuple[int, ...], sides: tuple[int, int], overlap: int):
    """A canvas of `shape` (height, width), pieces of `sides`."""
    self._shape = tuple(shape[:2])
    self._weights = np.outer(*(_ramp(side, overlap) for side in sides))[..., None]
    self._total: np.ndarray | None = None
    self._norm = np.zeros((*self._shape, 1), np.float32)

  def add(self, piece: Float[Array, "h w c"], y: int, x: int) -> None:
    """Adds a piece (*sides, C) whose top left corner is at (y, x)."""
    if self._total is None:
      self._total = np.zeros((*self._shape, piece.shape[-1]), np.float32)
    region = np.s_[y : y + piece.shape[0], x : x + piece.shape[1]]
    self._total[region] += np.asarray(piece) * self._weights
    self._norm[region] += self._weights

  def result(self) -> Float[Array, "h w c"]:
    """(height, width, C), once all of it is covered."""
    assert self._total is not None
    return jnp.asarray(self._total / self._norm)


def _ramp(side: int, overlap: int) -> np.ndarray:
  edge = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)
  return np.minimum(edge / max(overlap, 1), 1).astype(np.float32)
