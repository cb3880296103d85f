"""Samplers as tables: every step of every sampler is two linear combinations, with the coefficients known beforehand.

    x0 = x0_from_x * x + x0_from_prediction * prediction  (with a reference: + x0_from_reference * (reference - x0))
    x  = x_from_x0 * x0 + x_from_x * x + x_from_noise * noise

So one compiled step serves DDPM and DDIM, eps- and v-prediction, and any number of steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stablesr_jax.config import DiffusionConfig, Prediction, SamplingConfig
from stablesr_jax.diffusion.schedule import add_noise, alphas_cumprod, respace, respaced_timesteps

# The timesteps at which a reference guides, both included.
_GUIDED = (100, 1000)

Latent = Float[Array, "*b h w c"]
Table = Any  # NumPy's array or JAX's


class Steps(NamedTuple):
  """The steps of a run in the order they are taken, noisiest first, or one of them. float32; timesteps int32."""

  timesteps: Int[Table, "*s"]
  x0_from_x: Float[Table, "*s"]
  x0_from_prediction: Float[Table, "*s"]
  x_from_x0: Float[Table, "*s"]
  x_from_x: Float[Table, "*s"]
  x_from_noise: Float[Table, "*s"]
  x0_from_reference: Float[Table, "*s"]


def ddpm(config: DiffusionConfig, timesteps: Int[np.ndarray, " s"]) -> Steps:
  """Ancestral sampling over `timesteps` (increasing); the last step adds no noise, and x0 is not clipped."""
  s = respace(config, timesteps)
  noise = np.exp(0.5 * s.posterior_log_variance) * (np.arange(len(timesteps)) > 0)
  x, prediction = _x0_coefficients(s.alphas_cumprod, config.prediction)
  return _in_order(timesteps, x, prediction, s.posterior_mean_x0, s.posterior_mean_x, noise)


def ddim(config: DiffusionConfig, timesteps: Int[np.ndarray, " s"], eta: float = 0.0) -> Steps:
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
  """The steps that a sampling configuration asks for. A single one leads to x0, whichever the sampler."""
  timesteps = respaced_timesteps(sampling.steps, sampling.start_step)
  if sampling.sampler == "ddim" and sampling.steps > 1:
    steps = ddim(diffusion, timesteps, sampling.eta)
  else:
    steps = ddpm(diffusion, timesteps)
  # The gradient of ||reference - x0||^2 is 2 (x0 - reference), and x0 goes against it.
  guided = (steps.timesteps >= _GUIDED[0]) & (steps.timesteps <= _GUIDED[1])
  return steps._replace(x0_from_reference=np.where(guided, 2 * sampling.reference_weight, 0).astype(np.float32))


def start(
  diffusion: DiffusionConfig, sampling: SamplingConfig, lr_latents: Latent, noise: Latent
) -> tuple[Latent, Steps]:
  """Where sampling starts, the noised latents of LR images, and the steps from there."""
  noised = add_noise(diffusion, lr_latents, sampling.start_noise * noise, sampling.start_step)
  return noised, plan(diffusion, sampling)


def predicted_x0(x: Latent, prediction: Latent, coefficients: Steps, reference: Latent | None = None) -> Latent:
  """The x0 that a step goes by; the arguments are those of `step`."""
  c = coefficients
  x0 = c.x0_from_x * x + c.x0_from_prediction * prediction
  return x0 if reference is None else x0 + c.x0_from_reference * (reference - x0)


def step(x: Latent, prediction: Latent, noise: Latent, coefficients: Steps, reference: Latent | None = None) -> Latent:
  """Takes one sampler step.

  Args:
    x: The latent, float32.
    prediction: The network's output for it.
    noise: Standard normal noise.
    coefficients: One of the steps, its fields scalars.
    reference: The latent of a picture that x0 is drawn to; None: of none.

  Returns:
    The latent at the next, less noisy timestep.
  """
  c, x0 = coefficients, predicted_x0(x, prediction, coefficients, reference)
  return c.x_from_x0 * x0 + c.x_from_x * x + c.x_from_noise * noise


def run(
  predict: Callable[[jax.Array, jax.Array], jax.Array],
  x: Latent,
  steps: Steps,
  noise: Callable[[jax.Array], jax.Array],
) -> Latent:
  """Takes all steps in one compiled loop.

  Args:
    predict: The network's output for x at a timestep () int32.
    x: The latent at the first, noisiest timestep.
    noise: Gives standard normal noise of x's shape for the step of that number () int32.
  """

  def body(x: jax.Array, row: tuple[jax.Array, Steps]) -> tuple[jax.Array, None]:
    number, coefficients = row
    return step(x, predict(x, coefficients.timesteps), noise(number), coefficients), None

  rows = jnp.arange(len(steps.timesteps)), jax.tree.map(jnp.asarray, steps)
  if len(steps.timesteps) == 1:
    # Without a loop: within one, XLA's CPU backend computes the gradients of convolutions by plain loops.
    return body(x, jax.tree.map(lambda column: column[0], rows))[0]
  return jax.lax.scan(body, x, rows)[0]


def classifier_free_guidance(prediction: Latent, negative: Latent, scale: Float[Array, ""] | float) -> Latent:
  """Moves away from the negative prompt's prediction (eq. 8); a `scale` of 1 leaves `prediction`."""
  return negative + scale * (prediction - negative)


def _x0_coefficients(alpha_cumprod: np.ndarray, prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
  signal, noise = np.sqrt(alpha_cumprod, dtype=np.float64), np.sqrt(1 - alpha_cumprod, dtype=np.float64)
  return (1 / signal, -noise / signal) if prediction == "eps" else (signal, -noise)


def _in_order(timesteps: Int[np.ndarray, " s"], *coefficients: np.ndarray) -> Steps:
  columns = (*coefficients, np.zeros(len(timesteps)))  # no reference
  return Steps(timesteps[::-1].astype(np.int32), *(c[::-1].astype(np.float32) for c in columns))
