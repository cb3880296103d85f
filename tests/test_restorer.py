"""The assembled system with the micro model: sizes, types, reproducibility, compilations, errors."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from stablesr_jax import SamplingConfig, StableSR
from stablesr_jax.checkpoints.store import Manifest
from stablesr_jax.config import TextEncoderConfig
from stablesr_jax.errors import UserError
from stablesr_jax.models.unet import UNet
from tests import micro
from tests.micro import SAMPLING, photograph


def test_sizes_and_scales_share_one_program(monkeypatch):
  model, traces, denoise = micro.restorer(tile_batch=4), [], UNet.denoise
  monkeypatch.setattr(UNet, "denoise", lambda *args: traces.append(None) or denoise(*args))
  for height, width, scale in ((16, 16, 4), (11, 40, 3.3), (16, 16, 2), (40, 40, 0.6), (1, 1, 4)):
    result = model.upscale(photograph(height, width), scale=scale)
    assert result.shape == (round(height * scale), round(width * scale), 3) and result.dtype == np.uint8
  assert len(traces) == 1
  for height, width in ((3, 100), (5, 300)):  # narrow ones share another
    assert model.upscale(photograph(height, width)).shape == (4 * height, 4 * width, 3)
  assert len(traces) == 2


def test_the_result_keeps_the_low_frequencies_of_the_input(model):
  image = photograph(16, 16)
  blocks = lambda pixels: np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BOX), float)

  def error(color_fix):
    result = model.upscale(image, sampling=dataclasses.replace(SAMPLING, color_fix=color_fix))
    return np.abs(blocks(result) - blocks(image)).mean()

  assert error("wavelet") < 0.5 * error("none")


def test_kinds_of_image(model):
  array = photograph(16, 16)
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


def test_numpys_integers_are_seeds(model):
  image = photograph(16, 16)
  np.testing.assert_array_equal(model.upscale(image, seed=np.int64(42)), model.upscale(image))


@pytest.mark.slow
def test_the_result_does_not_depend_on_batches(model):
  images = [photograph(20, 31) / np.float32(255), photograph(16, 16) / np.float32(255)]
  keys = list(jax.random.split(jax.random.key(3), 2))
  together = model.upscale_batch(images, scale=4, keys=keys)
  for image, key, result in zip(images, keys, together, strict=True):
    [alone] = model.upscale_batch([image], scale=4, keys=[key])
    np.testing.assert_allclose(alone, result, atol=1e-5)
  for batch in (1, 3):
    [other] = micro.restorer(tile_batch=batch).upscale_batch(images[:1], scale=4, keys=keys[:1])
    np.testing.assert_allclose(other, together[0], atol=1e-4)


def test_a_prompt_changes_the_result_where_guidance_asks_for_it(tmp_path):
  text_encoder = TextEncoderConfig(width=micro.UNET.context_dim, layers=1, heads=2)
  config = dataclasses.replace(micro.MODEL, text_encoder=text_encoder)
  model, image = StableSR.load(micro.write(tmp_path / "with_text", config), tile_batch=4), photograph(16, 16)
  guided = dataclasses.replace(SAMPLING, negative_prompt="bad", guidance_scale=5.0)
  plain = model.upscale(image)
  assert (model.upscale(image, sampling=guided) != plain).any()
  assert (model.upscale(image, sampling=dataclasses.replace(SAMPLING, prompt="good")) != plain).any()
  unguided = dataclasses.replace(guided, guidance_scale=1.0)
  np.testing.assert_array_equal(model.upscale(image, sampling=unguided), plain)


@pytest.mark.slow
def test_autoencoder_in_pieces_is_close_to_whole():
  image = photograph(16, 32)
  whole = micro.restorer(autoencoder_tile=1024).upscale(image).astype(float)
  pieces = micro.restorer(autoencoder_tile=64).upscale(image).astype(float)
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


@pytest.mark.parametrize(
  "images, keys, message",
  [
    ([np.zeros((8, 8, 3), np.uint8)], 1, "image of uint8: expected an array of floats"),
    ([np.full((8, 8, 3), 200.0)], 1, "values in \\[0, 1\\]"),
    ([np.zeros((8, 8, 3), np.float32)], 2, "1 images, but 2 keys"),
    ([np.zeros((8, 8, 3), np.float32)], 0, "1 images, but 0 keys"),
  ],
)
def test_bad_batches(model, images, keys, message):
  with pytest.raises(UserError, match=message):
    model.upscale_batch(images, scale=4, keys=list(jax.random.split(jax.random.key(0), keys)) if keys else [])


def test_a_batch_of_none_is_none(model):
  assert model.upscale_batch([], scale=4, keys=[]) == []


def test_a_model_that_lacks_a_part_is_named():
  config = dataclasses.replace(micro.MODEL, time_aware_encoder=None)
  with pytest.raises(ValueError, match="has no time aware encoder"):
    StableSR(Manifest("plain", config), {})


def test_fidelity_weight_needs_cfw():
  config = dataclasses.replace(micro.MODEL, autoencoder=dataclasses.replace(micro.AUTOENCODER, cfw=False))
  plain = StableSR(Manifest("plain", config), micro.params(config))
  with pytest.raises(ValueError, match="no CFW"):
    plain.upscale(photograph(8, 8), sampling=SAMPLING)
