"""Schedules to the bit, and whole sampling runs with small networks and given noise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.config import ComputeConfig, DiffusionConfig
from stablesr_jax.diffusion import samplers, schedule
from stablesr_jax.inference import tiling
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.parallel import data_mesh
from tests.reference_data import load, names, nhwc, relative_error


def test_schedule():
  data = load("schedule")
  config = DiffusionConfig()
  np.testing.assert_array_equal(schedule.betas(config).astype(np.float32), data["betas"])
  np.testing.assert_array_equal(schedule.alphas_cumprod(config), data["alphas_cumprod"])
  for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"):
    np.testing.assert_array_equal(getattr(schedule, name)(config), data[name])


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


@pytest.fixture(scope="module")
def denoiser(small):
  """The restorer's denoiser for a batch of tiles; what it compiled is kept."""
  mesh = data_mesh(jax.devices()[:1])
  return functools.cache(lambda batch: Denoiser(small.config, small.params, ComputeConfig(), mesh, batch))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
  """Noise that is given for every step."""

  steps: jax.Array

  def __call__(self, number):
    return self.steps[number]


def condition(denoiser: Denoiser, data):
  """What the answers' prompts and guidance give the denoiser."""
  prompts, scale = [data["context"][0]], float(data.get("guidance", 1.0))
  if scale != 1:
    prompts.append(data["negative"][0])
  return denoiser.condition(jnp.stack(prompts), scale)


def run_whole(denoiser, data, steps: samplers.Steps) -> jax.Array:
  """Samples with the whole latent, of any shape, as one tile, from the given start and with the given noise."""
  denoiser = denoiser(len(data["x_T"]))
  conditions = condition(denoiser, data)
  x, lr = jnp.asarray(nhwc(data["x_T"])), jnp.asarray(nhwc(data["lr_latent"]))
  for i in range(len(steps.timesteps)):
    prediction = denoiser.predict(x, lr, steps.timesteps[i], conditions)
    noise = jnp.asarray(nhwc(data[f"noise_{i}"]))
    x = samplers.step(x, prediction, noise, samplers.Steps(*(column[i] for column in steps)))
    x = jnp.asarray(np.asarray(x))  # of no device in particular, as the start is, so that one program serves all
  return x


@pytest.mark.parametrize("name", names("small_ddpm_*"))
def test_ddpm(denoiser, name):
  data = load(name)
  config = DiffusionConfig(prediction="v" if "_v" in name else "eps")
  # The start, too: the noised LR latent at the last timestep.
  start = schedule.add_noise(config, nhwc(data["lr_latent"]), nhwc(data["noise0"]), 999)
  assert relative_error(start, nhwc(data["x_T"])) <= 1e-5
  steps = samplers.ddpm(config, schedule.respaced_timesteps(int(data["steps"])))
  result = run_whole(denoiser, data, steps)
  assert relative_error(result, nhwc(data["result"])) <= 1e-3


@pytest.mark.parametrize("name", names("small_ddim_*"))
def test_ddim(denoiser, name):
  data = load(name)
  config = DiffusionConfig()
  timesteps = schedule.respaced_timesteps(len(data["timesteps"]))
  np.testing.assert_array_equal(timesteps, data["timesteps"])
  np.testing.assert_array_equal(schedule.alphas_cumprod(config)[timesteps], data["alphas"])
  steps = samplers.ddim(config, timesteps, float(data["eta"]))
  np.testing.assert_allclose(steps.x_from_noise[::-1], data["sigmas"], rtol=1e-5, atol=1e-7)
  # The answers draw noise_0 at the first, noisiest step.
  result = run_whole(denoiser, data, steps)
  assert relative_error(result, nhwc(data["result"])) <= 1e-3


@pytest.mark.slow
def test_aggregation_sampling(denoiser):
  data, batch = load("small_canvas_ddpm"), 4  # that results do not depend on it, test_restorer.py says
  steps = samplers.ddpm(DiffusionConfig(), schedule.respaced_timesteps(int(data["steps"])))
  x, lr = nhwc(data["x_T"]), nhwc(data["lr_latent"])
  size = x.shape[1:3]
  sheet = tiling.Sheet.of([size], [size], (int(data["tile"]),) * 2, int(data["overlap"]))
  on_sheet = lambda canvas: tiling.lay(jnp.zeros((*sheet.shape, canvas.shape[-1])), jnp.asarray(canvas), sheet.tops)
  noise = Given(jnp.stack([on_sheet(nhwc(data[f"noise_{i}"])) for i in range(len(steps.timesteps))]))
  conditions = condition(denoiser(batch), data)
  result = denoiser(batch).sample(on_sheet(x), on_sheet(lr), sheet, noise, steps, conditions)
  assert relative_error(sheet.take(result, 0, 1, size), nhwc(data["result"])) <= 1e-3


def test_tile_weights():
  data = load("small_canvas_ddpm")
  for key in (k for k in data if k.startswith("weights")):
    weights = tiling.gaussian_weights(*data[key].shape)
    np.testing.assert_allclose(weights, data[key], rtol=1e-6, atol=1e-7 * data[key].max())
