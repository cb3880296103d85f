"""Schedules to the bit, and whole sampling runs with small networks and given noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax import tiling
from stablesr_jax.config import ComputeConfig, DiffusionConfig
from stablesr_jax.denoiser import Denoiser
from stablesr_jax.diffusion import samplers, schedule
from stablesr_jax.parallel import data_mesh
from tests.reference_data import load, names, nhwc, relative_error


def test_schedule():
  data = load("schedule")
  config = DiffusionConfig()
  np.testing.assert_array_equal(schedule.betas(config).astype(np.float32), data["betas"])
  np.testing.assert_array_equal(schedule.alphas_cumprod(config), data["alphas_cumprod"])
  signal, noise = schedule.signal_and_noise(config)
  np.testing.assert_array_equal(signal, data["sqrt_alphas_cumprod"])
  np.testing.assert_array_equal(noise, data["sqrt_one_minus_alphas_cumprod"])


@pytest.mark.parametrize("steps", sorted(int(k.split("_")[1]) for k in load("schedule") if k.startswith("timesteps_")))
def test_respaced_schedule(steps):
  data = load("schedule")
  timesteps = schedule.respaced_timesteps(steps)
  np.testing.assert_array_equal(timesteps, data[f"timesteps_{steps}"])
  ours = schedule.respace(DiffusionConfig(), timesteps)
  np.testing.assert_array_equal(ours.betas, data[f"betas_{steps}"])
  np.testing.assert_array_equal(ours.alphas_cumprod, data[f"alphas_cumprod_{steps}"])
  np.testing.assert_array_equal(ours.posterior_mean_x0, data[f"post_mean1_{steps}"])
  np.testing.assert_array_equal(ours.posterior_mean_x, data[f"post_mean2_{steps}"])
  np.testing.assert_array_equal(ours.posterior_log_variance, data[f"post_log_var_{steps}"])


def run(small, data, steps: samplers.Steps, *, tile: int, overlap: int, batch: int = 1) -> jax.Array:
  """Samples as the restorer does, with the given start and noise."""
  mesh = data_mesh(jax.devices()[:1])
  denoiser = Denoiser(small.config, small.params, ComputeConfig(), mesh, batch)
  prompts = [data["context"][0]]
  scale = float(data.get("guidance", 1.0))
  if scale != 1:
    prompts.append(data["negative"][0])
  [result] = denoiser.sample(
    [nhwc(data["x_T"])[0]],
    [nhwc(data["lr_latent"])[0]],
    lambda k, i: nhwc(data[f"noise_{i}"])[0],
    steps,
    denoiser.condition(steps, jnp.stack(prompts), scale),
    tile=tile,
    overlap=overlap,
  )
  return result[None]


@pytest.mark.parametrize("name", names("small_ddpm_*"))
def test_ddpm(small, name):
  data = load(name)
  config = DiffusionConfig(prediction="v" if "_v" in name else "eps")
  # The start, too: the noised LR latent at the last timestep.
  start = schedule.q_sample(data["lr_latent"], data["noise0"], *(t[-1] for t in schedule.signal_and_noise(config)))
  assert relative_error(start, data["x_T"]) <= 1e-5
  steps = samplers.ddpm(config, schedule.respaced_timesteps(int(data["steps"])))
  result = run(small, data, steps, tile=data["x_T"].shape[-1], overlap=0)
  assert relative_error(result, nhwc(data["result"])) <= 1e-3


@pytest.mark.parametrize("name", names("small_ddim_*"))
def test_ddim(small, name):
  data = load(name)
  config = DiffusionConfig()
  timesteps = schedule.respaced_timesteps(len(data["timesteps"]))
  np.testing.assert_array_equal(timesteps, data["timesteps"])
  np.testing.assert_array_equal(schedule.alphas_cumprod(config)[timesteps], data["alphas"])
  steps = samplers.ddim(config, timesteps, float(data["eta"]))
  np.testing.assert_allclose(steps.x_from_noise[::-1], data["sigmas"], rtol=1e-5, atol=1e-7)
  # The answers draw noise_0 at the first, noisiest step.
  result = run(small, data, steps, tile=data["x_T"].shape[-1], overlap=0)
  assert relative_error(result, nhwc(data["result"])) <= 1e-3


@pytest.mark.parametrize("batch", [1, 4])
def test_aggregation_sampling(small, batch):
  data = load("small_canvas_ddpm")
  steps = samplers.ddpm(DiffusionConfig(), schedule.respaced_timesteps(int(data["steps"])))
  result = run(small, data, steps, tile=int(data["tile"]), overlap=int(data["overlap"]), batch=batch)
  assert relative_error(result, nhwc(data["result"])) <= 1e-3


def test_tile_weights():
  data = load("small_canvas_ddpm")
  for key in (k for k in data if k.startswith("weights")):
    weights = tiling.gaussian_weights(len(data[key]))
    np.testing.assert_allclose(weights, data[key], rtol=1e-6, atol=1e-7 * data[key].max())
