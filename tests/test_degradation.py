"""Properties of the degradation; its agreement with the published one is in parity/test_degradation.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stablesr_jax import pixels
from stablesr_jax.degradation import (
  PRESETS,
  DegradationSettings,
  SharpenSettings,
  StageSettings,
  blur,
  degrade,
  degrade_pairs,
  jpeg,
  noise,
  sharpen,
)

settings = PRESETS["stablesr_512"]
key = jax.random.key(0)
images = np.random.default_rng(0).uniform(size=(3, 64, 96, 3)).astype(np.float32)


def test_shape_range_and_determinism():
  low = degrade(key, images, settings)
  assert low.shape == (3, 16, 24, 3) and low.dtype == jnp.float32
  assert np.isfinite(low).all() and low.min() >= 0 and low.max() <= 1
  np.testing.assert_array_equal(low, degrade(key, images, settings))
  assert np.abs(low - degrade(jax.random.key(1), images, settings)).max() > 0.01


def test_compiles_once_for_all_draws(compiled):
  degrade(key, images, settings)
  compiled.clear()
  for seed in range(8):
    degrade(jax.random.key(seed), images, settings)
  assert not compiled


def test_a_sample_does_not_depend_on_its_batch():
  low = degrade(key, images, settings)
  other = degrade(key, np.stack([images[0], 1 - images[1], images[2]]), settings)
  np.testing.assert_allclose(low[0], other[0], atol=1e-5)
  np.testing.assert_allclose(low[2], other[2], atol=1e-5)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))
  np.testing.assert_allclose(degrade(keys[::-1], images[::-1], settings)[::-1], low, atol=1e-5)


@pytest.mark.slow
def test_samples_at_once_as_accelerators_do():
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))[:2]
  one_by_one = degrade(key, images, settings)[:2]
  together = jax.jit(lambda keys, images: degrade(keys, images, settings, platform="gpu"))
  low = together(keys, images[:2])
  np.testing.assert_allclose(together(keys[::-1], images[1::-1])[::-1], low, atol=1e-5)
  # But where JPEG rounds to the other side.
  assert np.mean(np.abs(low - one_by_one) > 1e-4) < 0.02


def test_pairs_of_one_stage_are_the_sharpened_image_and_its_degradation():
  few_sizes = dataclasses.replace(PRESETS["face"].first, resize_range=(0.8, 1.0))  # one canvas: quicker to compile
  sharpened = dataclasses.replace(PRESETS["face"], first=few_sizes, sharpen=SharpenSettings())
  high, low = degrade_pairs(key, images, sharpened)
  np.testing.assert_allclose(high, sharpen(images, sharpened), atol=1e-5)
  assert np.abs(high - images).max() > 0.01
  assert low.shape == (3, 16, 24, 3) and low.min() >= 0 and low.max() <= 1
  np.testing.assert_array_equal(sharpen(images, PRESETS["face"]), images)
  high, same = degrade_pairs(key, images, dataclasses.replace(sharpened, sharpen=SharpenSettings(target=False)))
  np.testing.assert_array_equal(high, images)
  np.testing.assert_array_equal(same, low)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
  low = jax.eval_shape(lambda k, x: degrade(k, x, PRESETS[name]), key, jnp.zeros((2, 512, 512, 3)))
  assert low.shape == (2, 128, 128, 3)


def test_clean_images_are_only_shrunk():
  few_sizes = dataclasses.replace(PRESETS["face"].first, resize_range=(0.8, 1.0))
  clean = dataclasses.replace(PRESETS["face"], first=few_sizes, clean_probability=1.0)
  expected = images.reshape(3, 16, 4, 24, 4, 3).mean((2, 4))
  np.testing.assert_allclose(degrade(key, images, clean), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64, 3), (1, 64, 64, 4), (1, 66, 64, 3)])
def test_bad_images(shape):
  with pytest.raises(ValueError, match="images"):
    degrade(key, np.zeros(shape, np.float32), settings)


@pytest.mark.parametrize(
  ("cls", "field", "value"),
  [
    (StageSettings, "blur_probability", 1.5),
    (StageSettings, "kernel_sizes", (8, 21)),
    (StageSettings, "kernel_sizes", (21, 7)),
    (StageSettings, "kernel_probabilities", (0.5, 0.5)),
    (StageSettings, "sigma", (0.0, 1.0)),
    (StageSettings, "generalized_beta", (1.5, 2.0)),
    (StageSettings, "resize_probabilities", (0.5, 0.5, 0.5)),
    (StageSettings, "resize_range", (1.1, 1.5)),
    (StageSettings, "jpeg_quality", (0.0, 50.0)),
    (StageSettings, "gaussian_sigma", [1.0, 2.0]),
    (SharpenSettings, "weight", -1.0),
    (DegradationSettings, "scale", 0),
    (DegradationSettings, "clean_probability", -0.1),
  ],
)
def test_bad_settings(cls, field, value):
  with pytest.raises(ValueError, match=f"^{field.replace('_', '-')}[. ]") as error:
    cls(**{field: value})
  assert "\n" not in str(error.value)


def test_an_image_on_a_canvas_is_treated_as_alone():
  image = np.random.default_rng(1).uniform(size=(3, 45, 38)).astype(np.float32)
  canvas, size = np.zeros((3, 80, 64), np.float32), (jnp.int32(45), jnp.int32(38))
  canvas[:, :45, :38] = image
  compressed = jax.jit(jpeg.compress)(canvas, 70.0)[:, :45, :38]
  np.testing.assert_allclose(compressed, jpeg.compress(image, 70.0), atol=1e-5)
  kernel = blur.bivariate_kernel(21, 1.5, 0.6, 0.7)
  canvas[:, 45:], canvas[:, :, 38:] = 9, 9  # must not be seen
  filtered = jax.jit(blur.filter_planes)(canvas, kernel, size)[:, :45, :38]
  np.testing.assert_allclose(filtered, blur.filter_planes(image, kernel), atol=1e-5)
  for number, mode in enumerate(pixels.MODES):
    rows = pixels.axis_taps(number, size[0], 33, 45 / 33, 48, 4)
    columns = pixels.axis_taps(number, size[1], 50, 38 / 50, 64, 4)
    resized = pixels.apply_taps(canvas, rows, columns)
    np.testing.assert_allclose(resized[:, :33, :50], pixels.resize(image, 33, 50, mode), atol=1e-5)
    assert not resized[:, 33:].any() and not resized[:, :, 50:].any()


def test_unknown_resize_mode():
  with pytest.raises(ValueError, match="nearest"):
    pixels.resize(images, 8, 8, "nearest")


@pytest.mark.parametrize("rate", [0.0, 0.3, 3.9, 4.1, 7.0, 25.0, 256.0])
def test_poisson_distribution(rate):
  count = 100_000
  uniform = (jnp.arange(count) + 0.5) / count
  drawn = np.asarray(noise.poisson_quantile(uniform, jnp.full(count, rate, jnp.float32)))
  np.testing.assert_allclose(drawn.mean(), rate, rtol=2e-3)
  np.testing.assert_allclose(drawn.var(), rate, rtol=5e-3)
  values = np.unique(drawn)
  ours = np.searchsorted(drawn, values, side="right") / count
  np.testing.assert_allclose(ours, scipy.stats.poisson.cdf(values, rate), atol=2e-3)


@pytest.mark.parametrize(("levels", "quanta"), [(1, 1), (2, 2), (5, 8), (129, 256)])
def test_poisson_noise_counts_grey_levels(levels, quanta):
  # Most is one grey; the other levels are a pixel each. What lies outside is not counted.
  plane = np.full((1, 256, 256), 128 / 255, np.float32)
  plane.flat[:levels] = (np.arange(levels) + 128 - levels // 2) / 255
  inside = np.arange(256)[:, None] < np.full(256, 250)
  plane[:, 250:] = np.linspace(0, 1, 256)
  uniform = jax.random.uniform(key, plane.shape, minval=2.0**-24)
  drawn = np.asarray(noise.poisson_noise(uniform, plane, inside))[:, 1:250]
  np.testing.assert_allclose(drawn.var(), 128 / 255 / quanta, rtol=0.05)


def test_grey_levels_are_counted_exactly_and_without_a_scatter():
  levels = np.random.default_rng(0).choice(256, 100, replace=False)[np.arange(3 * 16 * 32) % 100].reshape(3, 16, 32)
  inside = np.arange(16)[:, None] < np.full(32, 1)
  count = lambda inside: int(noise._distinct(jnp.uint32(levels), jnp.asarray(inside)))
  assert count(np.ones((16, 32), bool)) == 100
  assert count(inside) == len(np.unique(levels[:, :1])) < 100
  assert count(np.zeros((16, 32), bool)) == 0
  plane = jnp.zeros((3, 16, 32))
  assert "scatter" not in str(jax.make_jaxpr(noise.poisson_noise)(plane, plane, jnp.asarray(inside)))


@pytest.mark.parametrize(("gaussian", "gray"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_noise_strength_and_channels(gaussian, gray):
  stage = StageSettings(
    gaussian_probability=gaussian, gray_probability=gray, gaussian_sigma=(10.0, 10.0), poisson_scale=(1.0, 1.0)
  )
  # All 256 levels, but most of it mid-grey.
  planes = np.full((3, 128, 128), 0.5, np.float32)
  planes[:, 0], planes[:, 1] = np.arange(128) / 255, np.arange(128, 256) / 255
  noisy = np.asarray(noise.add_noise(key, planes, stage, (100, 128)))
  assert not noisy[:, 100:].any()
  added = (noisy - planes)[:, 2:100]
  expected = 10 / 255 if gaussian else np.sqrt(0.5 / 256)
  np.testing.assert_allclose(added.std(), expected, rtol=0.05)
  assert np.allclose(added[0], added[1], atol=1e-6) == bool(gray)


def test_kernels_are_drawn_as_set():
  draws = jax.vmap(lambda k: blur.random_kernel(k, settings.first, 21))(jax.random.split(key, 2000))
  np.testing.assert_allclose(draws.sum((1, 2)), 1, atol=1e-5)
  widths = np.array([np.flatnonzero(np.abs(kernel).max(0)).size for kernel in np.asarray(draws)])
  assert widths.max() == 21 and (widths % 2 == 1).all()
  # Only sinc filters have negative entries, and nearly all of those.
  negative = (draws.min((1, 2)) < -1e-5).mean()
  assert 0.05 < negative < 0.13
