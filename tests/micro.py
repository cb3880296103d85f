"""The smallest whole model, its random parameters and a picture: what tests of behaviour run."""

import pathlib
from typing import Any

import jax
import numpy as np

from stablesr_jax import SamplingConfig, StableSR
from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest, ModelWriter
from stablesr_jax.config import AutoencoderConfig, ModelConfig, TimeAwareEncoderConfig, UNetConfig
from stablesr_jax.models.components import COMPONENTS, abstract_params
from stablesr_jax.models.parameters import Params

# Every kind of block is there, and no more: nearly all of a test's time is compilation. CFW needs three levels.
UNET = UNetConfig(
  channels=8,
  channel_multipliers=(1,),
  blocks_per_level=1,
  attention_levels=(),  # the middle block has attention anyway
  head_channels=4,
  context_dim=8,
  structure_channels=8,
  sft_hidden_channels=8,
  norm_groups=2,
)
ENCODER = TimeAwareEncoderConfig(
  channels=8, channel_multipliers=(1,), blocks_per_level=1, attention_levels=(), out_channels=8, norm_groups=2
)
AUTOENCODER = AutoencoderConfig(
  channels=8,
  channel_multipliers=(1, 1, 1),
  blocks_per_level=1,
  attention=False,
  norm_groups=2,
  cfw_growth=4,
  cfw_blocks=1,
)
MODEL = ModelConfig(unet=UNET, time_aware_encoder=ENCODER, autoencoder=AUTOENCODER, text_encoder=None)
SAMPLING = SamplingConfig(steps=2, tile_size=16, tile_overlap=8, color_fix="wavelet")


def random_params(config: ModelConfig, part: str, seed: int = 0) -> Params:
  """Parameters of one part that are zero nowhere, of a size that keeps activations about 1."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    if path[-1].key == "kernel":
      return values / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
    return (path[-1].key == "scale") + np.float32(0.05) * values

  return jax.tree_util.tree_map_with_path(fill, abstract_params(config, part))


def params(config: ModelConfig = MODEL) -> dict[str, Any]:
  """Every part that a model has, and the null prompt."""
  found: dict[str, Any] = {
    part: random_params(config, part) for part in COMPONENTS if getattr(config, part) is not None
  }
  if config.unet is not None:
    found[NULL_PROMPT] = np.zeros((77, config.unet.context_dim), np.float32)
  return found


def restorer(**options: Any) -> StableSR:
  """The assembled system."""
  return StableSR(Manifest("micro", MODEL, sampling=SAMPLING), params(), **options)


def write(folder: pathlib.Path, config: ModelConfig = MODEL, **fields: Any) -> pathlib.Path:
  """A converted model of the parts that `config` has; `fields` of its manifest."""
  with ModelWriter(folder) as writer:
    for part, values in params(config).items():
      writer.write(part, {NULL_PROMPT: values} if part == NULL_PROMPT else values)
    writer.commit(Manifest(folder.name, config, **{"sampling": SAMPLING, **fields}))
  return folder


def photograph(height: int, width: int) -> np.ndarray:
  """A smooth colourful picture (height, width, 3) uint8."""
  y, x = np.mgrid[:height, :width]
  channels = [np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)]
  return np.round(127.5 + 100 * np.stack(channels, axis=-1)).astype(np.uint8)
