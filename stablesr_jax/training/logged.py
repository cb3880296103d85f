"""Numbers to log as sums and counts, which add up over parts of a batch and over steps."""

import jax
import jax.numpy as jnp

from stablesr_jax.config import DiffusionConfig

BANDS = 4  # of timesteps, equally wide, whose losses are told apart

Means = dict[str, tuple[jax.Array, jax.Array]]  # sums and counts: they add up over parts of a batch, and over steps


def loss_by_band(config: DiffusionConfig, losses: jax.Array, t: jax.Array) -> Means:
  """The samples' losses (B,), apart by their timesteps (B,): "loss/t0-249" and so on."""
  width = config.steps // BANDS
  bands = {}
  for low in range(0, config.steps, width):
    inside = ((t >= low) & (t < low + width)).astype(jnp.float32)
    bands[f"loss/t{low}-{low + width - 1}"] = (jnp.sum(losses * inside), jnp.sum(inside))
  return bands
