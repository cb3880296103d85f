"""Samplers as tables: every step of every sampler is two linear combinations, with the coefficients known beforehand.

    x0 = x0_from_x * x + x0_from_prediction * prediction
    x  = x_from_x0 * x0 + x_from_x * x + x_from_noise * noise

So one compiled step serves DDPM and DDIM, eps- and v-prediction, and any number of steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stablesr_jax.config import DiffusionConfig, Prediction, SamplingConfig
from stablesr_jax.diffusion.schedule import alphas_cumprod, respace, respaced_timesteps


class Steps(NamedTuple):
  """The steps of a run in the order they are taken, noisiest first. Arrays are (S,) float32; timesteps int32."""

  timesteps: Any
  x0_from_x: Any
  x0_from_prediction: Any
  x_from_x0: Any
  x_from_x: Any
  x_from_noise: Any


def ddpm(config: DiffusionConfig, timesteps: np.ndarray) -> Steps:
  """Ancestral sampling over `timesteps` (increasing); the last step adds no noise, and x0 is not clipped."""
  s = respace(config, timesteps)
  noise = np.exp(0.5 * s.posterior_log_variance) * (np.arange(len(timesteps)) > 0)
  x, prediction = _x0_coefficients(s.alphas_cumprod, config.prediction)
  return _in_order(timesteps, x, prediction, s.posterior_mean_x0, s.posterior_mean_x, noise)


def ddim(config: DiffusionConfig, timesteps: np.ndarray, eta: float = 0.0) -> Steps:
  """DDIM over `timesteps` (increasing), with the cumulative alphas of those timesteps.

  The last step leads to the first timestep of the forward process, not to x0.
  """
  table = alphas_cumprod(config)
  alpha = table[timesteps].astype(np.float64)
  previous = np.append(table[0], table[timesteps[:-1]]).astype(np.float64)
  sigma = eta * np.sqrt((1 - previous) / (1 - alpha) * (1 - alpha / previous))
  # x_prev = sqrt(previous) x0 + direction * eps + sigma * noise, and eps = (x - sqrt(alpha) x0) / sqrt(1 - alpha).
  eps = np.sqrt(1 - previous - sigma**2) / np.sqrt(1 - alpha)
  x, prediction = _x0_coefficients(alpha, config.prediction)
  return _in_order(timesteps, x, prediction, np.sqrt(previous) - eps * np.sqrt(alpha), eps, sigma)


def plan(diffusion: DiffusionConfig, sampling: SamplingConfig) -> Steps:
  """The steps that a sampling configuration asks for."""
  timesteps = respaced_timesteps(sampling.steps, sampling.start_step)
  if sampling.sampler == "ddim":
    return ddim(diffusion, timesteps, sampling.eta)
  return ddpm(diffusion, timesteps)


def step(x: jax.Array, prediction: jax.Array, noise: jax.Array, at: Steps) -> jax.Array:
  """One sampler step.

  Args:
    x, prediction, noise: (..., h, w, 4) float32; the latent, the network's output for it, standard normal noise.
    at: one row of the steps, its fields scalars.

  Returns:
    The latent at the next, less noisy timestep.
  """
  x0 = at.x0_from_x * x + at.x0_from_prediction * prediction
  return at.x_from_x0 * x0 + at.x_from_x * x + at.x_from_noise * noise


def run(
  predict: Callable[[jax.Array, jax.Array], jax.Array],
  x: jax.Array,
  steps: Steps,
  noise: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """All steps in one compiled loop.

  Args:
    predict: the network's output for x (..., h, w, 4) at a timestep () int32.
    x: the latent at the first, noisiest timestep.
    noise: standard normal noise of x's shape for the step of that number () int32.
  """

  def body(x: jax.Array, row: tuple[jax.Array, Steps]) -> tuple[jax.Array, None]:
    number, at = row
    return step(x, predict(x, at.timesteps), noise(number), at), None

  return jax.lax.scan(body, x, (jnp.arange(len(steps.timesteps)), steps))[0]


def guide(prediction: jax.Array, negative: jax.Array, scale: jax.Array | float) -> jax.Array:
  """Classifier-free guidance (eq. 8): away from the negative prompt's prediction, `scale` 1 leaves `prediction`."""
  return negative + scale * (prediction - negative)


def _x0_coefficients(alpha_cumprod: np.ndarray, prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
  signal, noise = np.sqrt(alpha_cumprod, dtype=np.float64), np.sqrt(1 - alpha_cumprod, dtype=np.float64)
  return (1 / signal, -noise / signal) if prediction == "eps" else (signal, -noise)


def _in_order(timesteps: np.ndarray, *coefficients: np.ndarray) -> Steps:
  return Steps(timesteps[::-1].astype(np.int32), *(c[::-1].astype(np.float32) for c in coefficients))
