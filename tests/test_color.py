"""Colour correction in CIELAB, and in part."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import lab2rgb, rgb2lab

from stablesr_jax.inference import color


@pytest.fixture
def pictures(rng=np.random.default_rng(0)):
  return rng.random((2, 24, 40, 3), np.float32), rng.random((2, 24, 40, 3), np.float32)


def test_cielab_is_scikit_images(pictures):
  image, _ = pictures
  image[0, :8] *= 0.02  # below the knees of both curves
  found = np.asarray(color.to_lab(jnp.asarray(image)))
  np.testing.assert_allclose(found, rgb2lab(image), atol=2e-3)
  np.testing.assert_allclose(color.from_lab(jnp.asarray(found)), image, atol=2e-5)
  wide = found * 1.5  # colours that sRGB does not have
  np.testing.assert_allclose(color.from_lab(jnp.asarray(wide)), lab2rgb(wide), atol=2e-3)


def test_lab_takes_the_colours_and_leaves_the_light():
  y, x = np.mgrid[:64, :64]
  grey = 0.5 + 0.2 * np.sin(x / 3) * np.cos(y / 4)
  cast = np.stack([grey * 1.1, grey, grey * 0.8], axis=-1).astype(np.float32)[None]
  style = np.full((1, 64, 64, 3), 0.3, np.float32)
  found = rgb2lab(np.asarray(color.lab(jnp.asarray(cast), jnp.asarray(style))))
  np.testing.assert_allclose(found[..., 0], rgb2lab(cast)[..., 0], atol=1e-2)
  assert np.abs(rgb2lab(cast)[..., 1:]).mean() > 5 > 2 > np.abs(found[..., 1:]).mean()


@pytest.mark.parametrize("name", ["adain", "wavelet", "lab"])
def test_a_frame_changes_nothing_within(pictures, name):
  content, style = (jnp.asarray(image) for image in pictures)
  height, width = 17, 30
  alone = color.fix(content[:, :height, :width], style[:, :height, :width], name)
  framed = color.fix(content, style, name, np.full((2, 2), (height, width), np.int32))
  np.testing.assert_allclose(framed[:, :height, :width], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["adain", "wavelet", "lab", "none"])
def test_colours_are_corrected_in_part(pictures, name):
  content, style = (jnp.asarray(image) for image in pictures)
  whole = color.COLOR_FIXES[name](content, style, None)
  np.testing.assert_allclose(color.fix(content, style, name, weight=1.0), whole, atol=1e-6)
  np.testing.assert_array_equal(color.fix(content, style, name, weight=0.0), content)
  np.testing.assert_allclose(
    color.fix(content, style, name, weight=0.25), content + 0.25 * (whole - content), atol=1e-5
  )
