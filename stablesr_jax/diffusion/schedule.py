"""The forward process and its respaced schedules, as NumPy tables computed on the host."""

from typing import Any, NamedTuple

import jax
import numpy as np

from stablesr_jax.config import DiffusionConfig


class RespacedSchedule(NamedTuple):
  """A schedule of S of the forward process's timesteps, the cleanest first. Arrays are (S,).

  Attributes:
    timesteps: int64; what the network sees.
    betas, alphas_cumprod: float32, of the respaced process.
    posterior_mean_x0, posterior_mean_x: weights of x0 and x_t in the mean of q(x_(t-1) | x_t, x0).
    posterior_log_variance: its log variance, clipped below at log(1e-20).
  """

  timesteps: np.ndarray
  betas: np.ndarray
  alphas_cumprod: np.ndarray
  posterior_mean_x0: np.ndarray
  posterior_mean_x: np.ndarray
  posterior_log_variance: np.ndarray


def betas(config: DiffusionConfig) -> np.ndarray:
  """(steps,) float64: linear in the square root."""
  return np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps) ** 2


def alphas_cumprod(config: DiffusionConfig) -> np.ndarray:
  """(steps,) float32: the share of the signal's variance left at each timestep."""
  return np.cumprod(1 - betas(config)).astype(np.float32)


def signal_and_noise(config: DiffusionConfig) -> tuple[np.ndarray, np.ndarray]:
  """(steps,) float32 each: the factors of x0 and of the noise in x_t, for `q_sample`."""
  cumulative = np.cumprod(1 - betas(config))
  return np.sqrt(cumulative).astype(np.float32), np.sqrt(1 - cumulative).astype(np.float32)


def respaced_timesteps(steps: int, start: int = 999) -> np.ndarray:
  """(steps,) int64, evenly spaced from 0 to `start`, both included."""
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


def q_sample(x0: jax.Array, noise: jax.Array, signal: Any, level: Any) -> jax.Array:
  """x_t = signal * x0 + level * noise, the factors taken from `signal_and_noise` and broadcast against x0."""
  return signal * x0 + level * noise
