"""What the diffusion networks are trained to predict."""

from jaxtyping import Array, Float, Integer

from stablesr_jax.config import DiffusionConfig
from stablesr_jax.diffusion.schedule import coefficients


def prediction_target(
  config: DiffusionConfig, x0: Float[Array, "b h w c"], noise: Float[Array, "b h w c"], t: Integer[Array, " b"]
) -> Float[Array, "b h w c"]:
  """The noise (eps-prediction), or the velocity sqrt(alpha) noise - sqrt(1 - alpha) x0 (v-prediction), float32.

  Args:
    x0: Clean latents, float32.
    noise: The noise that was added to them.
    t: The timesteps, in [0, config.steps).
  """
  if config.prediction == "eps":
    return noise
  signal, noise_level = coefficients(config, t, x0.ndim)
  return signal * noise - noise_level * x0
