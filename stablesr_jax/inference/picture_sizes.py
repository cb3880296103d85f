"""The sizes that a picture goes through on its way to the result."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from stablesr_jax.config import ModelConfig, SamplingConfig
from stablesr_jax.errors import UserError
from stablesr_jax.inference import frames, tiling
from stablesr_jax.inference.output_size import OutputSize, output_size


class PictureSizes(NamedTuple):
  """Heights and widths.

  Attributes:
    size: The result's.
    tile: Those of its tiles, in latent pixels.
    canvas: Those of what is restored: the result's, but where a tile is longer. There the picture lies in the middle,
      and is continued by its reflection to both sides: at the borders of what they see networks are at their worst.
    latent: The canvas's latent's.
    frame: Those of its frame, in pixels.
  """

  size: tuple[int, int]
  tile: tuple[int, int]
  canvas: tuple[int, int]
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
    height, width = (
      downsampling * side if longer else own
      for own, side, longer in zip(size, tile, (t > c for t, c in zip(tile, covered, strict=True)), strict=True)
    )
    return cls(size, tile, (height, width), latent, frames.around((downsampling * latent[0], downsampling * latent[1])))

  def cut(self, canvas: Float[np.ndarray, "_ _ 3"]) -> Float[np.ndarray, "_ _ 3"]:
    """The result's part of a canvas, which may lie in a frame."""
    top, left = margins(self.size, self.canvas)
    return canvas[top : top + self.size[0], left : left + self.size[1]]

  def count_tiles(self, sampling: SamplingConfig) -> int:
    return len(tiling.grid(self.latent, self.tile, sampling.overlap))


def margins(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
  """Where a picture begins that lies in the middle of a canvas."""
  return (canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2


def count_tiles(
  config: ModelConfig, size: tuple[int, int], *, scale: float | OutputSize, sampling: SamplingConfig
) -> int:
  """The number of diffusion tiles of a picture of `size` (height, width).

  Raises:
    UserError: The result is beyond all reason.
  """
  assert config.autoencoder is not None
  return PictureSizes.of((*size, 3), scale, sampling, config.autoencoder.downsampling).count_tiles(sampling)
