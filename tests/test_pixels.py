"""Kinds of pixels, and pictures that get smaller."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stablesr_jax import pixels


@pytest.mark.parametrize("library", [np, jnp])
def test_to_uint8_clips_and_rounds(library):
  image = library.asarray([-0.1, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.7], library.float32)
  result = pixels.to_uint8(image)
  assert result.dtype == np.uint8 and isinstance(result, type(image))
  np.testing.assert_array_equal(result, [0, 0, 0, 1, 255, 255])


def test_a_picture_comes_back_as_the_kind_it_was():
  uint8 = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
  for picture in (uint8, Image.fromarray(uint8)):
    result = pixels.like(pixels.to_float(picture), picture)
    assert type(result) is type(picture)
    np.testing.assert_array_equal(np.asarray(result), uint8)
  floats = np.float64(uint8) / 255
  assert pixels.like(pixels.to_float(floats), floats).dtype == np.float32


def test_a_smaller_picture_is_antialiased():
  """A pattern finer than the result's pixels becomes grey; without antialiasing it stays at full contrast."""
  fine = jnp.asarray(np.indices((64, 64)).sum(0) % 2, jnp.float32)[..., None].repeat(3, axis=2)
  smaller = pixels.fit(fine, (21, 21))
  assert smaller.shape == (21, 21, 3)
  assert jnp.abs(smaller - 0.5)[2:-2, 2:-2].max() < 0.05
  assert jnp.abs(pixels.enlarge(fine, (21, 21)) - 0.5).max() > 0.45


def test_a_larger_picture_keeps_its_contrast():
  image = jnp.asarray(np.random.default_rng(0).random((6, 7, 3)), jnp.float32)
  np.testing.assert_array_equal(pixels.fit(image, (12, 7)), pixels.enlarge(image[None], (12, 7))[0])


def test_pad_to_multiple_reflects():
  image = jnp.arange(3 * 4 * 1, dtype=jnp.float32).reshape(3, 4, 1)
  padded = pixels.pad_to_multiple(image, 4)
  assert padded.shape == (4, 4, 1)
  np.testing.assert_array_equal(padded[3], image[1])
