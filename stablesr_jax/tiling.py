"""Aggregation sampling's geometry: overlapping tiles of a canvas and their weighted average (3.3, appendix B)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def offsets(size: int, tile: int, overlap: int) -> list[int]:
  """Where tiles start along one side, `tile - overlap` apart; the last one is moved back to end at the border.

  Raises:
    ValueError: the side is shorter than a tile, or the overlap is not smaller than the tile.
  """
  if size < tile:
    raise ValueError(f"a side of {size} is shorter than a tile of {tile}")
  if not 0 <= overlap < tile:
    raise ValueError(f"overlap {overlap} must be 0 to {tile - 1}")
  stride = tile - overlap
  count = -(-(size - tile) // stride) + 1
  return [min(i * stride, size - tile) for i in range(count)]


def grid(height: int, width: int, tile: int, overlap: int) -> np.ndarray:
  """(T, 2) int32: top and left of every tile, row by row."""
  rows, columns = offsets(height, tile, overlap), offsets(width, tile, overlap)
  return np.array([(y, x) for y in rows for x in columns], np.int32)


def gaussian_weights(tile: int, variance: float = 0.01) -> np.ndarray:
  """(tile, tile) float32, a Gaussian of `variance` in units of the side squared.

  Its middle is half a pixel low along y, as in the published weights.
  """

  def profile(middle: float) -> np.ndarray:
    distance = (np.arange(tile) - middle) / tile
    return np.exp(-(distance**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

  return np.outer(profile(tile / 2), profile((tile - 1) / 2)).astype(np.float32)


def feather_weights(tile: int, overlap: int) -> np.ndarray:
  """(tile, tile) float32: 1 inside, falling linearly to the tile's edges over `overlap` pixels, never 0."""
  edge = np.minimum(np.arange(tile) + 0.5, tile - np.arange(tile) - 0.5)
  profile = np.minimum(edge / max(overlap, 1), 1)
  return np.outer(profile, profile).astype(np.float32)


@functools.partial(jax.jit, static_argnames="tile")
def split(canvas: jax.Array, starts: jax.Array, tile: int) -> jax.Array:
  """canvas (H, W, C), starts (T, 2) -> tiles (T, tile, tile, C)."""
  cut = lambda start: jax.lax.dynamic_slice(canvas, (start[0], start[1], 0), (tile, tile, canvas.shape[-1]))
  return jax.vmap(cut)(starts)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def aggregate(tiles: jax.Array, starts: jax.Array, weights: jax.Array, *, height: int, width: int) -> jax.Array:
  """The weighted average of tiles where they overlap.

  Args:
    tiles: (T, tile, tile, C). starts: (T, 2). weights: (tile, tile), positive.

  Returns:
    (height, width, C). Tiles are added in order, so the sum does not depend on how they were batched.
  """

  def add(canvases, placed):
    tile, start = placed

    def put(canvas, value):
      at = (start[0], start[1], 0)
      return jax.lax.dynamic_update_slice(canvas, jax.lax.dynamic_slice(canvas, at, value.shape) + value, at)

    return (put(canvases[0], tile), put(canvases[1], weights[..., None])), None

  weighted = jax.vmap(lambda tile: tile * weights[..., None])(tiles)
  empty = (jnp.zeros((height, width, tiles.shape[-1]), tiles.dtype), jnp.zeros((height, width, 1), weights.dtype))
  (total, norm), _ = jax.lax.scan(add, empty, (weighted, starts))
  return total / norm
