"""The autoencoder for pictures of any size: several at once, one divided over devices, or in overlapping pieces."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import AutoencoderConfig, ComputeConfig
from stablesr_jax.inference import frames, tiling
from stablesr_jax.models.kl_autoencoder import Autoencoder
from stablesr_jax.models.parameters import Params, apply

# What the sides of pieces are multiples of, in pixels.
_PIECE_MULTIPLE = 64

Sides = Int[np.ndarray, "b 2"]


class Encoded(NamedTuple):
  """What `TiledAutoencoder.encode` knows of pictures.

  Attributes:
    moments: The moments of the posterior (see `kl_autoencoder.posterior`).
    features: The features that CFW wraps; None without CFW, or if the pictures went through in pieces.
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
    self, config: AutoencoderConfig, params: Params, compute: ComputeConfig, mesh: jax.sharding.Mesh, tile: int = 1024
  ):
    self.config, self.tile = config, max(tile // _PIECE_MULTIPLE, 1) * _PIECE_MULTIPLE
    self._module, self._params, self._mesh = Autoencoder(config, compute), params, mesh
    options = compiler_options(compute.platform)
    self._encode = jax.jit(self._encode_impl, compiler_options=options)
    self._decode = jax.jit(self._decode_impl, compiler_options=options)
    self._decode_piece = jax.jit(self._decode_piece_impl, compiler_options=options)

  def whole(self, frame: tuple[int, ...]) -> bool:
    """Whether the devices together take pictures in such a frame whole."""
    return frame[0] * frame[1] <= self._mesh.size * self.tile**2

  def most(self, frame: tuple[int, int]) -> int:
    """How many pictures in such a frame the devices take at once; 1 where one goes through in pieces."""
    return max(self._mesh.size * self.tile**2 // (frame[0] * frame[1]), 1)

  @property
  def bytes_of_a_pixel(self) -> float:
    """What is kept of a picture until it is decoded: CFW's features, and the enlarged picture twice."""
    inner = range(1, len(self.config.channel_multipliers) - 1) if self.config.cfw else ()
    features = sum(self.config.channels * self.config.channel_multipliers[level] / 4**level for level in inner)
    return features * self._module.compute.jax_dtype.itemsize + 2 * 3 * 4

  def encode(self, pictures: Float[Array, "b h w 3"], sides: Sides) -> Encoded:
    """Encodes pictures.

    Args:
      pictures: Pictures in [-1, 1], in frames; several only if they go through whole.
      sides: Their heights and widths in latent pixels, of `config.downsampling` pixels each.

    Returns:
      Their moments, each in a frame of latent pixels.
    """
    if self.whole(pictures.shape[1:3]):
      return self._encode(self._params, self._divided(pictures), sides)
    f, blend = self.config.downsampling, None
    for y, x, piece, size in self._pieces(pictures, sides):
      blend = blend or tiling.Blend(self._frame(pictures, f), size, self.tile // 4 // f)
      encoded = self._encode(self._params, self._divided(piece), np.array([size], np.int32))
      blend.add(encoded.moments[0], y, x)
    assert blend is not None
    return Encoded(blend.result()[None], None)

  def decode(
    self,
    latents: Float[Array, "b h w c"],
    pictures: Float[Array, "b H W 3"],
    sides: Sides,
    features: list[jax.Array] | None,
    fidelity_weight: float,
  ) -> Float[Array, "b H W 3"]:
    """Decodes the diffusion's latents, which are `config.scale_factor` times the autoencoder's.

    Args:
      pictures: The LR pictures at the output's size, as they were encoded.
      sides: As for `encode`.
      features: The features of `encode(pictures, sides)`.
      fidelity_weight: The w of CFW in [0, 1].

    Returns:
      Pictures of about [-1, 1], not clipped, float32, in the frames of `pictures`.
    """
    weight = jnp.float32(fidelity_weight)
    if self.whole(pictures.shape[1:3]):
      return self._decode(self._params, self._divided(latents), sides, features, weight)
    f, blend = self.config.downsampling, None
    for y, x, piece, size in self._pieces(pictures, sides):
      blend = blend or tiling.Blend(self._frame(pictures), (f * size[0], f * size[1]), self.tile // 4)
      height, width = (side // f for side in piece.shape[1:3])
      latent = self._divided(tiling.crop(latents[0], y, x, height, width)[None])
      decoded = self._decode_piece(self._params, latent, self._divided(piece), np.array([size], np.int32), weight)
      blend.add(decoded[0], f * y, f * x)
    assert blend is not None
    return blend.result()[None]

  def _frame(self, pictures: jax.Array, unit: int = 1) -> tuple[int, int]:
    return pictures.shape[1] // unit, pictures.shape[2] // unit

  def _pieces(
    self, pictures: jax.Array, sides: Sides
  ) -> Iterator[tuple[int, int, Float[Array, "1 h w 3"], tuple[int, int]]]:
    """The pieces of a picture: top and left, the piece in its frame, height and width, all but the piece in latent
    pixels. All pieces are of one size."""
    [picture], [(height, width)] = pictures, sides.tolist()
    f = self.config.downsampling
    tile, overlap = self.tile // f, self.tile // 4 // f
    size = min(height, tile), min(width, tile)
    shape = [self.tile if side == tile else frames.length(f * side, frames.SMALLEST) for side in size]
    rows, columns = (
      tiling.offsets(side, piece, min(overlap, piece - 1)) for side, piece in zip((height, width), size, strict=True)
    )
    for y in rows:
      for x in columns:
        yield y, x, tiling.crop(picture, f * y, f * x, shape[0], shape[1])[None], size

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

  def _decode_piece_impl(
    self, params: Params, latents: jax.Array, pictures: jax.Array, sides: jax.Array, weight: jax.Array
  ) -> jax.Array:
    return self._decode_impl(params, latents, sides, self._encode_impl(params, pictures, sides).features, weight)
