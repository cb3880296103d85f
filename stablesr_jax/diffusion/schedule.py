"""The forward process and its respaced schedules, as NumPy tables computed on the host."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from stablesr_jax.config import DiffusionConfig


class RespacedSchedule(NamedTuple):
  """A schedule of S of the forward process's timesteps, the cleanest first. Arrays are (S,).

  Attributes:
    timesteps: The timesteps that the network sees, int64.
    betas: The variances of the respaced process, float32.
    alphas_cumprod: Its cumulative alphas, float32.
    posterior_mean_x0: The weight of x0 in the mean of q(x_(t-1) | x_t, x0).
    posterior_mean_x: The weight of x_t in it.
    posterior_log_variance: Its log variance, clipped below at log(1e-20).
  """

  timesteps: Int[np.ndarray, " s"]
  betas: Float[np.ndarray, " s"]
  alphas_cumprod: Float[np.ndarray, " s"]
  posterior_mean_x0: Float[np.ndarray, " s"]
  posterior_mean_x: Float[np.ndarray, " s"]
  posterior_log_variance: Float[np.ndarray, " s"]


def betas(config: DiffusionConfig) -> Float[np.ndarray, " t"]:
  """The variances of the forward process, float64: linear in the square root."""
  return np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps) ** 2


def alphas_cumprod(config: DiffusionConfig) -> Float[np.ndarray, " t"]:
  """The share of the signal's variance that is left at each timestep, float32."""
  return _alphas_cumprod(config).astype(np.float32)


def sqrt_alphas_cumprod(config: DiffusionConfig) -> Float[np.ndarray, " t"]:
  """The factor of x_0 in x_t at each timestep, float32."""
  return np.sqrt(_alphas_cumprod(config)).astype(np.float32)


def sqrt_one_minus_alphas_cumprod(config: DiffusionConfig) -> Float[np.ndarray, " t"]:
  """The factor of the noise in x_t at each timestep, float32."""
  return np.sqrt(1 - _alphas_cumprod(config)).astype(np.float32)


def _alphas_cumprod(config: DiffusionConfig) -> np.ndarray:
  return np.cumprod(1 - betas(config))


def coefficients(
  config: DiffusionConfig, t: Integer[Array | np.ndarray, "..."] | int, ndim: int
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
  """The factors of x_0 and of the noise at timesteps t, with axes of length 1 appended up to `ndim` axes."""
  at_t = lambda table: jnp.asarray(table)[t].reshape(*jnp.shape(t), *[1] * (ndim - jnp.ndim(t)))
  return at_t(sqrt_alphas_cumprod(config)), at_t(sqrt_one_minus_alphas_cumprod(config))


def add_noise(
  config: DiffusionConfig,
  x0: Float[Array | np.ndarray, "*b h w c"],
  noise: Float[Array | np.ndarray, "*b h w c"],
  t: Integer[Array | np.ndarray, "..."] | int,
) -> Float[Array, "*b h w c"]:
  """Draws x_t of the forward process, q(x_t | x_0).

  Args:
    x0: Clean latents, float32.
    noise: Standard normal noise.
    t: The timestep of all latents, or of each of the leading axis; in [0, config.steps).
  """
  signal, noise_level = coefficients(config, t, x0.ndim)
  return signal * x0 + noise_level * noise


def respaced_timesteps(steps: int, start: int = 999) -> Int[np.ndarray, "{steps}"]:
  """Timesteps that are evenly spaced from 0 to `start`, both included, int64; a single one is `start`."""
  if steps == 1:
    return np.array([start], np.int64)
  return np.round(np.arange(steps) * (start / (steps - 1))).astype(np.int64)


def respace(config: DiffusionConfig, timesteps: np.ndarray) -> RespacedSchedule:
  """The process that visits only `timesteps` (increasing): cumulative alphas there define new betas.

  The arithmetic is float32 where the published tables' is, so the tables are equal to the bit.
  """
  kept = alphas_cumprod(config)[timesteps]
  betas = 1 - kept / np.append(np.float32(1), kept[:-1])
  alphas = 1 - betas
  cumulative = np.cumprod(alphas)
  previous = np.append(1.0, cumulative[:-1])
  variance = betas * (1 - previous) / (1 - cumulative)
  single = lambda a: a.astype(np.float32)
  return RespacedSchedule(
    timesteps=timesteps,
    betas=betas,
    alphas_cumprod=cumulative,
    posterior_mean_x0=single(betas * np.sqrt(previous) / (1 - cumulative)),
    posterior_mean_x=single((1 - previous) * np.sqrt(alphas) / (1 - cumulative)),
    posterior_log_variance=single(np.log(np.maximum(variance, 1e-20))),
  )
