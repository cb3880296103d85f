"""Kinds of pixels."""

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
