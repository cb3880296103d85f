"""The autoencoder for pictures of any size: several at once, one divided over devices, or in overlapping pieces."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import AutoencoderConfig, ComputeConfig
from stablesr_jax.inference import frames, memory, tiling
from stablesr_jax.inference.enlarged import Enlarged
from stablesr_jax.inference.tiling import Axis
from stablesr_jax.models.kl_autoencoder import Autoencoder
from stablesr_jax.models.parameters import Params, apply

# What the sides of pieces are multiples of, in pixels.
_PIECE_MULTIPLE = 64

Sides = Int[np.ndarray, "b 2"]
# Gives the part of a picture's latents with a top, a left and a shape; what lies beyond them has no meaning.
Latents = Callable[[int, int, tuple[int, int]], Float[Array, "h w c"]]


class Encoded(NamedTuple):
  """What `TiledAutoencoder.encode` knows of pictures.

  Attributes:
    moments: The moments of the posterior (see `kl_autoencoder.posterior`).
    features: The features that CFW wraps; None without CFW.
  """

  moments: Float[Array, "b h w c"]
  features: list[jax.Array] | None


class TiledAutoencoder:
  """Encodes and decodes pictures in frames.

  Where there are as many pictures as devices they are divided among these, otherwise each picture's rows are: exactly,
  as statistics and attention are of the whole. What is larger than the devices take goes through in pieces, so that
  memory does not grow with the picture. They are blended linearly over a quarter of their side; the GroupNorm
  statistics of a piece are its own, so the result is not exactly that of the whole picture.

  Attributes:
    tile: The side in pixels of the largest square that a device takes, and of a piece; a multiple of 64.
  """

  def __init__(
    self, config: AutoencoderConfig, params: Params, compute: ComputeConfig, mesh: jax.sharding.Mesh, tile: int
  ):
    self.config, self.tile = config, _piece_side(tile)
    self._module, self._params, self._mesh = Autoencoder(config, compute), params, mesh
    options = compiler_options(compute.platform)
    self._encode = jax.jit(self._encode_impl, compiler_options=options)
    self._decode = jax.jit(self._decode_impl, compiler_options=options)
    self._encode_piece = jax.jit(self._encode_piece_impl, compiler_options=options)
    self._decode_piece = jax.jit(self._decode_piece_impl, compiler_options=options)

  def whole(self, frame: tuple[int, ...]) -> bool:
    """Whether the devices together take pictures in such a frame whole."""
    return frame[0] * frame[1] <= self._mesh.size * self.tile**2

  def most(self, frame: tuple[int, int]) -> int:
    """How many pictures in such a frame the devices take at once; 1 where one goes through in pieces."""
    return max(self._mesh.size * self.tile**2 // (frame[0] * frame[1]), 1)

  def shrink(self, area: int) -> bool:
    """Halves the tile, after so many pixels at once were too many; False where it is the smallest already."""
    side = min(self.tile, math.isqrt(area // self._mesh.size))
    smaller = max(_piece_side(side // 2), memory.AUTOENCODER_TILES[0])
    if smaller >= side:
      return False
    self.tile = smaller
    return True

  def encode(self, pictures: Float[Array, "b h w 3"], sides: Sides) -> Encoded:
    """Encodes pictures that go through whole.

    Args:
      pictures: Pictures in [-1, 1], in frames.
      sides: Their heights and widths in latent pixels, of `config.downsampling` pixels each.

    Returns:
      Their moments, each in a frame of latent pixels.
    """
    return self._encode(self._params, self._divided(pictures), sides)

  def decode(
    self, latents: Float[Array, "b h w c"], sides: Sides, features: list[jax.Array] | None, fidelity_weight: float
  ) -> Float[Array, "b H W 3"]:
    """Decodes the diffusion's latents of pictures that go through whole; they are `config.scale_factor` times the
    autoencoder's.

    Args:
      sides: As for `encode`.
      features: The features of `encode(pictures, sides)`.
      fidelity_weight: The w of CFW in [0, 1].

    Returns:
      Pictures of about [-1, 1], not clipped, float32, in the frames that were encoded.
    """
    return self._decode(self._params, self._divided(latents), sides, features, jnp.float32(fidelity_weight))

  def encode_in_pieces(self, picture: Enlarged, size: tuple[int, int]) -> Float[np.ndarray, "h w c"]:
    """Encodes a picture of any size.

    Args:
      picture: The picture at the output's size.
      size: Its height and width in latent pixels, of which the last ones may lie beyond it.

    Returns:
      Its moments, float32, on the host.
    """
    rows, columns = self._cut(size)
    blend = tiling.Blend((*size, 2 * self.config.latent_channels), rows, columns)
    sides = np.array([[rows.size, columns.size]], np.int32)
    encode = lambda y, x: self._encode_piece(self._params, self._piece(picture, y, x, size), sides)
    for y, x, moments in _each(encode, rows, columns):
      blend.add(moments[0], y, x)
    return blend.canvas

  def decode_in_pieces(
    self, latents: Latents, picture: Enlarged, size: tuple[int, int], fidelity_weight: float
  ) -> Float[np.ndarray, "h w 3"]:
    """Decodes the diffusion's latents of a picture of any size.

    Args:
      picture: The LR picture at the output's size, as it was encoded.
      size: As for `encode_in_pieces`.
      fidelity_weight: The w of CFW in [0, 1].

    Returns:
      A picture of about [-1, 1], not clipped, float32, of the canvas of `picture`, on the host.
    """
    f, weight = self.config.downsampling, jnp.float32(fidelity_weight)
    rows, columns = self._cut(size)
    shape = self.piece_shape(size)
    sides = np.array([[rows.size, columns.size]], np.int32)

    def decode(y: int, x: int) -> jax.Array:
      latent = self._divided(latents(y, x, shape)[None])
      return self._decode_piece(self._params, latent, self._piece(picture, y, x, size), sides, weight)

    # In pixels they are the same pieces.
    blend = tiling.Blend((*picture.canvas, 3), *(_axis(f * side, self.tile) for side in size))
    for y, x, decoded in _each(decode, rows, columns):
      blend.add(decoded[0], f * y, f * x)
    return blend.canvas

  def piece_shape(self, size: tuple[int, int]) -> tuple[int, int]:
    """The sides of the frame of every piece of a picture of `size` latent pixels, in these."""
    f = self.config.downsampling
    height, width = (
      axis.size if f * axis.size == self.tile else frames.length(f * axis.size, frames.SMALLEST) // f
      for axis in self._cut(size)
    )
    return height, width

  def _cut(self, size: tuple[int, int]) -> tuple[Axis, Axis]:
    """How pieces lie along both sides, in latent pixels."""
    tile = self.tile // self.config.downsampling
    return _axis(size[0], tile), _axis(size[1], tile)

  def _piece(self, picture: Enlarged, y: int, x: int, size: tuple[int, int]) -> Float[Array, "1 h w 3"]:
    """The piece that begins at this latent pixel, in its frame, in [-1, 1]."""
    f = self.config.downsampling
    height, width = self.piece_shape(size)
    return self._divided(picture.part(f * y, f * x, (f * height, f * width))[None] * 2 - 1)

  def _divided(self, batch: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Puts a batch on the devices: divided by pictures, or by rows, or where neither can be, whole on each."""
    devices = self._mesh.size
    pictures, rows = (batch.shape[axis] % devices == 0 for axis in (0, 1))
    spec = jax.P("data") if pictures else jax.P(None, "data") if rows else jax.P()
    return jax.device_put(batch, jax.NamedSharding(self._mesh, spec))

  def _encode_impl(self, params: Params, pictures: jax.Array, sides: jax.Array) -> Encoded:
    moments, features = apply(self._module, params, pictures, sides, method="encode")
    return Encoded(moments, features if self.config.cfw else None)

  def _decode_impl(
    self, params: Params, latents: jax.Array, sides: jax.Array, features: list[jax.Array] | None, weight: jax.Array
  ) -> jax.Array:
    z = latents / self.config.scale_factor
    return apply(self._module, params, z, features, weight, sides, method="decode")

  def _encode_piece_impl(self, params: Params, pictures: jax.Array, sides: jax.Array) -> jax.Array:
    return self._encode_impl(params, pictures, sides).moments

  def _decode_piece_impl(
    self, params: Params, latents: jax.Array, pictures: jax.Array, sides: jax.Array, weight: jax.Array
  ) -> jax.Array:
    return self._decode_impl(params, latents, sides, self._encode_impl(params, pictures, sides).features, weight)


def _piece_side(tile: int) -> int:
  return max(tile // _PIECE_MULTIPLE, 1) * _PIECE_MULTIPLE


def _axis(side: int, tile: int) -> Axis:
  return Axis(side, min(side, tile), tile // 4)


def _each(
  compute: Callable[[int, int], Float[Array, "1 h w c"]], rows: Axis, columns: Axis
) -> Iterator[tuple[int, int, Float[np.ndarray, "1 h w c"]]]:
  """Where each piece begins, and what is computed of it, on the host: while that is fetched, the next one runs."""
  running: tuple[int, int, jax.Array] | None = None
  for y in rows.starts:
    for x in columns.starts:
      following = y, x, compute(y, x)
      if running is not None:
        yield *running[:2], np.asarray(running[2])
      running = following
  assert running is not None
  yield *running[:2], np.asarray(running[2])
