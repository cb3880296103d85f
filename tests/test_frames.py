"""A picture in a frame: what comes out is what would without one, and a new size compiles nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax import pixels
from stablesr_jax.config import ComputeConfig
from stablesr_jax.inference import color, frames
from stablesr_jax.inference.enlarged import Enlarged
from stablesr_jax.models.kl_autoencoder import Autoencoder
from stablesr_jax.models.parameters import apply
from tests import micro
from tests.micro import photograph


def test_frames_grow_by_half_at_most():
  lengths = sorted({frames.length(size, frames.SMALLEST) for size in range(1, 4097)})
  assert lengths == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
  assert all(frames.length(size, frames.SMALLEST) == size for size in lengths)
  assert frames.around((65, 512)) == (96, 512)


def in_frame(image: np.ndarray, target: tuple[int, int]) -> jax.Array:
  return Enlarged(image, target).part(0, 0, frames.around(target))[: target[0], : target[1]]


def test_a_larger_picture_is_that_of_training():
  image = np.random.default_rng(0).random((70, 33, 3), np.float32)
  np.testing.assert_allclose(in_frame(image, (280, 100)), pixels.enlarge(image[None], (280, 100))[0], atol=2e-5)


def test_a_smaller_picture_is_antialiased():
  image = np.random.default_rng(0).random((70, 100, 3), np.float32)
  expected = jax.image.resize(image, (33, 67, 3), "cubic", antialias=True).clip(0, 1)
  np.testing.assert_allclose(in_frame(image, (33, 67)), expected, atol=1e-5)
  # A pattern finer than the result's pixels becomes grey; without antialiasing it stays at full contrast.
  fine = np.indices((64, 64)).sum(0).astype(np.float32)[..., None].repeat(3, axis=2) % 2
  assert jnp.abs(in_frame(fine, (21, 21)) - 0.5)[2:-2, 2:-2].max() < 0.05
  assert jnp.abs(pixels.resize(jnp.moveaxis(fine, -1, 0), 21, 21, "bicubic") - 0.5).max() > 0.45


def test_the_reflection_is_numpys():
  image = np.random.default_rng(0).random((5, 7, 3), np.float32)
  expected = np.pad(image, [(0, 3), (0, 1), (0, 0)], mode="reflect")
  np.testing.assert_allclose(Enlarged(image, (5, 7)).part(0, 0, (8, 8)), expected, atol=1e-6)
  # In the middle of a larger canvas it goes on to both sides.
  expected = np.pad(image, [(2, 2), (4, 5), (0, 0)], mode="reflect")
  np.testing.assert_allclose(Enlarged(image, (5, 7), (9, 16)).part(0, 0, (9, 16)), expected, atol=1e-6)


def test_noise_is_that_of_a_pixel_wherever_its_picture_lies():
  keys = [jax.random.key(k) for k in range(2)]
  alone = frames.Noise(keys[1:], np.zeros(4, np.int32), np.arange(4), (6, 2))(3, 5)
  below = frames.Noise(keys, np.repeat([0, 1], 8), np.tile(np.arange(8), 2), (16, 2))(3, 5)
  np.testing.assert_array_equal(below[8:12, :6], alone)
  values = np.asarray(frames.Noise(keys, np.repeat([0, 1], 64), np.tile(np.arange(64), 2), (64, 4))(0))
  assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02 and len(np.unique(values)) > 0.99 * values.size


def test_noise_of_a_large_canvas_is_the_same(monkeypatch):
  noise = frames.Noise([jax.random.key(0)], np.zeros(20, np.int32), np.arange(20), (6, 2))
  expected = noise(3)
  monkeypatch.setattr(frames, "_DRAWN_AT_ONCE", 8 * 6 * 2)
  np.testing.assert_array_equal(noise(3), expected)


@pytest.mark.parametrize("attention", [False, True])
def test_the_autoencoder_does_not_see_beyond_the_picture(attention):
  config = dataclasses.replace(micro.AUTOENCODER, attention=attention)
  model = dataclasses.replace(micro.MODEL, autoencoder=config)
  module, params = Autoencoder(config, ComputeConfig()), micro.random_params(model, "autoencoder")
  image = jnp.asarray(photograph(44, 36), jnp.float32)[None] / 127.5 - 1
  framed = jnp.full((1, 64, 48, 3), 9.0).at[:, :44, :36].set(image)
  sides = jnp.array([[11, 9]])
  run = lambda *args, method: apply(module, params, *args, method=method)
  moments, features = run(image, method="encode")
  framed_moments, framed_features = run(framed, sides, method="encode")
  np.testing.assert_allclose(framed_moments[:, :11, :9], moments, atol=1e-5)
  z = jnp.pad(moments[..., :4], ((0, 0), (0, 5), (0, 3), (0, 0)), constant_values=-7)
  decoded = run(moments[..., :4], features, 1.0, method="decode")
  framed_decoded = run(z, framed_features, 1.0, sides, method="decode")
  np.testing.assert_allclose(framed_decoded[:, :44, :36], decoded, atol=1e-5)


@pytest.mark.parametrize("name", ["adain", "wavelet"])
def test_colours_do_not_see_beyond_the_picture(name):
  content, style = (jnp.asarray(photograph(40, 50) / 255, jnp.float32)[None, ::step] for step in (1, -1))
  framed = [jnp.full((1, 64, 64, 3), 9.0).at[:, :40, :50].set(image) for image in (content, style)]
  fixed = color.fix(*framed, name, np.array([[40, 50]]))[:, :40, :50]
  np.testing.assert_allclose(fixed, color.fix(content, style, name), atol=2e-6)


def test_a_new_size_compiles_nothing(model, compiled):
  """Sizes whose frames are there already, whatever the number of steps."""
  image = photograph(24, 32)
  model.upscale(image)
  compiled.clear()
  for height, width in ((23, 30), (20, 25), (17, 32)):
    steps = dataclasses.replace(micro.SAMPLING, steps=height % 5 + 2)
    assert model.upscale(image[:height, :width], sampling=steps).shape == (4 * height, 4 * width, 3)
  assert not compiled
  model.upscale(photograph(40, 16))
  assert compiled
