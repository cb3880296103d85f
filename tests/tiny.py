"""Small random models and pictures for fast tests."""

import jax
import numpy as np

from stablesr_jax.config import ModelConfig
from stablesr_jax.models.components import abstract_params
from stablesr_jax.models.parameters import Params


def random_params(config: ModelConfig, part: str, seed: int = 0) -> Params:
  """Parameters of one part that are zero nowhere, of a size that keeps activations about 1."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    values = rng.standard_normal(leaf.shape, np.float32)
    if path[-1].key == "kernel":
      return values / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
    return (path[-1].key == "scale") + np.float32(0.05) * values

  return jax.tree_util.tree_map_with_path(fill, abstract_params(config, part))


def photograph(height: int, width: int) -> np.ndarray:
  """A smooth colourful picture (height, width, 3) uint8."""
  y, x = np.mgrid[:height, :width]
  channels = [np.sin(x / 5), np.cos(y / 7), np.sin((x + y) / 9)]
  return np.round(127.5 + 100 * np.stack(channels, axis=-1)).astype(np.uint8)
