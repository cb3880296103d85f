"""What the diffusion networks are trained on: noised latents and what to predict for them."""

import jax
import jax.numpy as jnp

from stablesr_jax.config import DiffusionConfig
from stablesr_jax.diffusion.schedule import q_sample, signal_and_noise


def noised(config: DiffusionConfig, x0: jax.Array, noise: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A step of the forward process, and what the network is to predict there.

  Args:
    x0, noise: (B, h, w, 4) float32.
    t: (B,) int32 in [0, config.steps).

  Returns:
    x_t, and the noise or v; each (B, h, w, 4) float32.
  """
  signal, level = (jnp.asarray(table)[t][:, None, None, None] for table in signal_and_noise(config))
  target = noise if config.prediction == "eps" else signal * noise - level * x0
  return q_sample(x0, noise, signal, level), target
