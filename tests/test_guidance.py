"""A reference that guides, and what steps are seen to predict."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.config import DiffusionConfig, SamplingConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.errors import UserError
from tests.micro import SAMPLING, photograph


def test_a_reference_guides_from_timestep_100_on():
  steps = samplers.plan(DiffusionConfig(), SamplingConfig(steps=10, reference_weight=0.05))
  np.testing.assert_allclose(steps.x0_from_reference, np.where(steps.timesteps >= 100, 0.1, 0), rtol=1e-6)
  assert (steps.x0_from_reference == 0).any() and (steps.x0_from_reference > 0).any()


def test_x0_goes_against_the_gradient_of_the_squared_distance():
  x, prediction, reference = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, 4, 4, 3), np.float32))
  steps = samplers.plan(DiffusionConfig(), SamplingConfig(steps=1))
  row = samplers.Steps(*(column[0] for column in steps))
  x0 = samplers.predicted_x0(x, prediction, row)
  gradient = jax.grad(lambda x0: ((reference - x0) ** 2).sum())(x0)
  guided = samplers.predicted_x0(x, prediction, row, reference)
  np.testing.assert_allclose(guided, x0 - 0.05 * gradient, rtol=1e-5, atol=1e-6)


def test_a_reference_draws_the_result_to_it(model):
  image, reference = photograph(16, 16), np.full((20, 30, 3), 255, np.uint8)
  sampling = lambda weight: dataclasses.replace(SAMPLING, steps=1, color_fix="none", reference_weight=weight)
  alone = model.upscale(image, sampling=sampling(0.05))
  unguided, guided, replaced = (
    model.upscale(image, sampling=sampling(weight), reference=reference) for weight in (0.0, 0.05, 0.5)
  )
  np.testing.assert_allclose(unguided, alone, atol=1)
  assert 0 < np.abs(guided.astype(float) - alone).mean() < np.abs(replaced.astype(float) - alone).mean()
  other = model.upscale(photograph(24, 24)[:16, :16], sampling=sampling(0.5), reference=reference)
  assert other.shape == replaced.shape
  with pytest.raises(UserError, match="^1 images, but 2 references: must be as many$"):
    model.upscale_batch(
      [image / np.float32(255)], scale=4, keys=[jax.random.key(0)], references=[image / np.float32(255)] * 2
    )


def test_what_the_last_step_predicts_is_the_result(model):
  seen = []
  result = model.upscale(photograph(16, 24), scale=3, watch=lambda done, picture: seen.append((done, picture)))
  assert [done for done, _ in seen] == [1, 2] and all(picture.shape == result.shape for _, picture in seen)
  np.testing.assert_allclose(seen[-1][1], result, atol=1)
  assert (seen[0][1] != result).any()
  some = []
  again = model.upscale(photograph(16, 24), scale=3, watch=lambda done, picture: some.append(done), watch_every=5)
  assert some == [2]
  np.testing.assert_array_equal(again, result)
