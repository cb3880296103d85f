"""The autoencoder for images of any size, whole or in overlapping pieces."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import AutoencoderConfig, ComputeConfig
from stablesr_jax.inference import tiling
from stablesr_jax.models.kl_autoencoder import Autoencoder
from stablesr_jax.models.parameters import Params, apply

# Both sides of an image are divisible by this many pixels: what the networks need, and few shapes to compile for.
SIDE_MULTIPLE = 64


class Encoded(NamedTuple):
  """What `TiledAutoencoder.encode` knows of an image.

  Attributes:
    moments: The moments of the posterior (see `kl_autoencoder.posterior`).
    features: The features that CFW wraps; None without CFW, or if the image went through in pieces.
  """

  moments: Float[Array, "h w c"]
  features: list[jax.Array] | None


class TiledAutoencoder:
  """Encodes and decodes one image at a time, so that memory does not grow with the image.

  Pieces are blended linearly over a quarter of their side. The GroupNorm statistics of a piece are its own, so the
  result is not exactly that of the whole image.

  Attributes:
    tile: The largest side in pixels that goes through whole, and the side of a piece; a multiple of SIDE_MULTIPLE.
  """

  def __init__(self, config: AutoencoderConfig, params: Params, compute: ComputeConfig, tile: int = 1024):
    self.config, self.tile = config, max(tile // SIDE_MULTIPLE, 1) * SIDE_MULTIPLE
    self._module, self._params = Autoencoder(config, compute), params
    options = compiler_options(compute.platform)
    self._encode = jax.jit(self._encode_impl, compiler_options=options)
    self._decode = jax.jit(self._decode_impl, compiler_options=options)
    self._decode_piece = jax.jit(self._decode_piece_impl, compiler_options=options)

  def encode(self, image: Float[Array, "h w 3"]) -> Encoded:
    """Encodes an image in [-1, 1], both sides divisible by SIDE_MULTIPLE."""
    corners, (height, width) = self._pieces(image)
    if len(corners) == 1:
      return self._encode(self._params, image)
    f = self.config.downsampling
    blend = tiling.Blend((image.shape[0] // f, image.shape[1] // f), (height // f, width // f), self._overlap // f)
    for y, x in corners:
      blend.add(self._encode(self._params, tiling.crop(image, y, x, height, width)).moments, y // f, x // f)
    return Encoded(blend.result(), None)

  def decode(
    self,
    latent: Float[Array, "h w c"],
    image: Float[Array, "H W 3"],
    features: list[jax.Array] | None,
    fidelity_weight: float,
  ) -> Float[Array, "H W 3"]:
    """Decodes the diffusion's latent, which is `config.scale_factor` times the autoencoder's.

    Args:
      image: The LR image at the output's size, as it was encoded.
      features: The features of `encode(image)`.
      fidelity_weight: The w of CFW in [0, 1].

    Returns:
      An image of about [-1, 1], not clipped, float32.
    """
    weight = jnp.float32(fidelity_weight)
    corners, (height, width) = self._pieces(image)
    if len(corners) == 1:
      return self._decode(self._params, latent, features, weight)
    f = self.config.downsampling
    blend = tiling.Blend(image.shape[:2], (height, width), self._overlap)
    for y, x in corners:
      piece = tiling.crop(image, y, x, height, width)
      latent_piece = tiling.crop(latent, y // f, x // f, height // f, width // f)
      blend.add(self._decode_piece(self._params, latent_piece, piece, weight), y, x)
    return blend.result()

  @property
  def _overlap(self) -> int:
    return self.tile // 4

  def _pieces(self, image: jax.Array) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Where pieces of an image start, and their sides; all in pixels, and multiples of a latent pixel."""
    f = self.config.downsampling
    height, width = (min(side, self.tile) for side in image.shape[:2])
    rows, columns = (
      tiling.offsets(side // f, piece // f, min(self._overlap, piece - f) // f)
      for side, piece in zip(image.shape[:2], (height, width), strict=True)
    )
    return [(f * y, f * x) for y in rows for x in columns], (height, width)

  def _encode_impl(self, params: Params, image: jax.Array) -> Encoded:
    moments, features = apply(self._module, params, image[None], method="encode")
    return Encoded(moments[0], features if self.config.cfw else None)

  def _decode_impl(
    self, params: Params, latent: jax.Array, features: list[jax.Array] | None, weight: jax.Array
  ) -> jax.Array:
    z = latent[None] / self.config.scale_factor
    return apply(self._module, params, z, features, weight, method="decode")[0]

  def _decode_piece_impl(self, params: Params, latent: jax.Array, image: jax.Array, weight: jax.Array) -> jax.Array:
    return self._decode_impl(params, latent, self._encode_impl(params, image).features, weight)
