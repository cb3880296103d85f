"""The sizes that a picture goes through on its way to the result."""

from typing import NamedTuple

from stablesr_jax.config import ModelConfig, SamplingConfig
from stablesr_jax.errors import UserError
from stablesr_jax.inference import frames, tiling
from stablesr_jax.inference.output_size import OutputSize, output_size


class PictureSizes(NamedTuple):
  """Heights and widths.

  Attributes:
    size: The result's.
    tile: Those of its tiles, in latent pixels.
    latent: Its latent's. Where it would be shorter than a tile, the picture is continued by its reflection.
    frame: Those of its frame, in pixels.
  """

  size: tuple[int, int]
  tile: tuple[int, int]
  latent: tuple[int, int]
  frame: tuple[int, int]

  @classmethod
  def of(
    cls, shape: tuple[int, ...], scale: float | OutputSize, sampling: SamplingConfig, downsampling: int
  ) -> "PictureSizes":
    """Those of a picture of this shape; `downsampling` is the autoencoder's.

    Raises:
      UserError: It is none of a picture, or the result is beyond all reason.
    """
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
      raise UserError(f"image of shape {shape}: expected (height, width, 3)")
    size = output_size(scale).of((shape[0], shape[1]))
    covered = -(-size[0] // downsampling), -(-size[1] // downsampling)
    tile = tiling.tile_sides(covered, sampling.tile_size, sampling.overlap)
    latent = max(covered[0], tile[0]), max(covered[1], tile[1])
    return cls(size, tile, latent, frames.around((downsampling * latent[0], downsampling * latent[1])))

  def count_tiles(self, sampling: SamplingConfig) -> int:
    return len(tiling.grid(self.latent, self.tile, sampling.overlap))


def count_tiles(
  config: ModelConfig, size: tuple[int, int], *, scale: float | OutputSize, sampling: SamplingConfig
) -> int:
  """The number of diffusion tiles of a picture of `size` (height, width).

  Raises:
    UserError: The result is beyond all reason.
  """
  assert config.autoencoder is not None
  return PictureSizes.of((*size, 3), scale, sampling, config.autoencoder.downsampling).count_tiles(sampling)
