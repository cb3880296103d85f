"""HR and LR images of a batch, as the stages that restore take them."""

import jax
import jax.numpy as jnp

from stablesr_jax.config import Platform
from stablesr_jax.degradation import degrade_pairs
from stablesr_jax.degradation.settings import DegradationSettings
from stablesr_jax.pixels import enlarge
from stablesr_jax.training.stage import Batch


def prepare_pairs(batch: Batch, keys: jax.Array, settings: DegradationSettings, platform: Platform | None) -> Batch:
  """{"hr": uint8, ["lr": uint8]} -> {"hr", "lr"}, (B, S, S, 3) in [-1, 1], the LR image enlarged (bicubic)."""
  hr = batch["hr"].astype(jnp.float32) / 255
  if "lr" in batch:
    low = batch["lr"].astype(jnp.float32) / 255
  else:
    hr, low = degrade_pairs(keys, hr, settings, platform=platform)
  return {"hr": hr * 2 - 1, "lr": enlarge(low, hr.shape[1:3]) * 2 - 1}
