"""The assembled system with a tiny random model: sizes, types, reproducibility, compilations, errors."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from stablesr_jax import SamplingConfig, StableSR
from stablesr_jax import config as configs
from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest
from tests.tiny import photograph, random_params

SAMPLING = SamplingConfig(steps=2, tile_size=16, tile_overlap=8, color_fix="wavelet")


def tiny_model(**options) -> StableSR:
  config = configs.tiny()
  params = {part: random_params(config, part) for part in ("unet", "time_aware_encoder", "autoencoder")}
  params[NULL_PROMPT] = np.zeros((77, config.unet.context_dim), np.float32)
  return StableSR(Manifest("tiny", config, sampling=SAMPLING), params, **options)


@pytest.fixture(scope="module")
def model() -> StableSR:
  return tiny_model(tile_batch=4)


def test_three_sizes_one_program(model):
  for height, width in ((16, 16), (20, 31), (9, 40)):
    result = model.upscale(photograph(height, width))
    assert result.shape == (4 * height, 4 * width, 3) and result.dtype == np.uint8
  assert model.denoiser.compilations == 1


@pytest.mark.parametrize("scale", [1, 2, 3.3])
def test_scale(model, scale):
  result = model.upscale(photograph(20, 31), scale=scale)
  assert result.shape == (round(20 * scale), round(31 * scale), 3)


def test_the_result_keeps_the_low_frequencies_of_the_input(model):
  image = photograph(24, 24)
  blocks = lambda pixels: np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BOX), float)

  def error(color_fix):
    result = model.upscale(image, sampling=dataclasses.replace(SAMPLING, color_fix=color_fix))
    return np.abs(blocks(result) - blocks(image)).mean()

  assert error("wavelet") < 0.5 * error("none")


def test_kinds_of_image(model):
  array = photograph(16, 20)
  from_array = model.upscale(array)
  from_pil = model.upscale(Image.fromarray(array))
  from_float = model.upscale(array.astype(np.float32) / 255)
  assert isinstance(from_pil, Image.Image) and from_float.dtype == np.float32
  np.testing.assert_array_equal(np.asarray(from_pil), from_array)
  np.testing.assert_allclose(from_float * 255, from_array, atol=0.51)


def test_same_seed_same_result_another_seed_another(model):
  image = photograph(16, 16)
  a, b, c = (model.upscale(image, seed=seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(a, b)
  assert (a != c).any()


def test_the_result_does_not_depend_on_batches(model):
  images = [photograph(20, 31) / np.float32(255), photograph(16, 16) / np.float32(255)]
  keys = list(jax.random.split(jax.random.key(3), 2))
  together = model.upscale_batch(images, scale=4, keys=keys)
  for image, key, result in zip(images, keys, together, strict=True):
    [alone] = model.upscale_batch([image], scale=4, keys=[key])
    np.testing.assert_allclose(alone, result, atol=1e-5)
  for batch in (1, 3):
    [other] = tiny_model(tile_batch=batch).upscale_batch(images[:1], scale=4, keys=keys[:1])
    np.testing.assert_allclose(other, together[0], atol=1e-4)


def test_start_step_keeps_more_of_the_input(model):
  image = photograph(16, 16)
  enlarged = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC), float)
  sampling = dataclasses.replace(SAMPLING, color_fix="none")
  decoded = model.upscale(image, sampling=dataclasses.replace(sampling, start_step=5))
  noisy = model.upscale(image, sampling=sampling)
  assert decoded.shape == noisy.shape == enlarged.shape
  assert (decoded != noisy).any()


def test_guidance_changes_the_result_and_scale_one_is_no_guidance(model):
  image = photograph(16, 16)
  model._prompts["bad"] = jax.random.normal(jax.random.key(9), model._prompts[""].shape)
  guided = dataclasses.replace(SAMPLING, negative_prompt="bad", guidance_scale=5.0)
  assert (model.upscale(image, sampling=guided) != model.upscale(image)).any()
  unguided = dataclasses.replace(guided, guidance_scale=1.0)
  np.testing.assert_array_equal(model.upscale(image, sampling=unguided), model.upscale(image))


def test_autoencoder_in_pieces_is_close_to_whole():
  image = photograph(40, 48)
  whole = tiny_model(autoencoder_tile=1024).upscale(image).astype(float)
  pieces = tiny_model(autoencoder_tile=128).upscale(image).astype(float)
  assert (whole != pieces).any()
  # Each piece has its own GroupNorm statistics, which random weights make the most of.
  assert np.corrcoef(whole.ravel(), pieces.ravel())[0, 1] > 0.97


def test_progress_is_told_after_every_step(model):
  told = []
  model.upscale(photograph(16, 16), progress=lambda done, total: told.append((done, total)))
  assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
  "image, options, message",
  [
    (np.zeros((8, 8), np.uint8), {}, "expected \\(height, width, 3\\)"),
    (np.zeros((0, 8, 3), np.uint8), {}, "expected \\(height, width, 3\\)"),
    (np.zeros((8, 8, 3), np.int32), {}, "int32"),
    (np.full((8, 8, 3), 2.0), {}, "values in \\[0, 1\\]"),
    (np.zeros((8, 8, 3), np.uint8), {"scale": 0}, "scale 0"),
    (np.zeros((8, 8, 3), np.uint8), {"scale": float("nan")}, "scale nan"),
    (np.zeros((8, 8, 3), np.uint8), {"sampling": SamplingConfig(prompt="x")}, "no text encoder"),
  ],
)
def test_bad_arguments(model, image, options, message):
  with pytest.raises(ValueError, match=message):
    model.upscale(image, **options)


def test_a_model_that_lacks_a_part_is_named():
  config = dataclasses.replace(configs.tiny(), time_aware_encoder=None)
  with pytest.raises(ValueError, match="has no time aware encoder"):
    StableSR(Manifest("plain", config), {})


def test_fidelity_weight_needs_cfw(model):
  config = configs.tiny()
  config = dataclasses.replace(config, autoencoder=dataclasses.replace(config.autoencoder, cfw=False))
  plain = StableSR(Manifest("plain", config), model._params)
  with pytest.raises(ValueError, match="no CFW"):
    plain.upscale(photograph(8, 8), sampling=SAMPLING)
