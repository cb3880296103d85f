"""Measures of restored images against scikit-image's, and NIQE against the answers of another implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from stablesr_jax.evaluation import luma, niqe, psnr_y, sharpness, ssim_y


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
  """(4, 96, 128, 3) float32 in [0, 1], and the same disturbed: little noise, much noise, a shift, a flat image."""
  photograph = skimage.data.astronaut()[40:136, 160:288].astype(np.float32) / 255
  rng = np.random.default_rng(0)
  disturbed = [photograph + rng.normal(0, std, photograph.shape) for std in (0.002, 0.2)]
  disturbed += [np.roll(photograph, 3, axis=1), np.full_like(photograph, 0.5)]
  return np.stack([photograph] * 4), np.stack(disturbed).clip(0, 1).astype(np.float32)


def reference_luma(image: np.ndarray) -> np.ndarray:
  """Of 16 to 235, float64."""
  return image.astype(np.float64) @ [65.481, 128.553, 24.966] + 16


def test_luma_is_that_of_the_literature():
  colors = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0]]], np.float32)
  np.testing.assert_allclose(255 * luma(jnp.asarray(colors)), [[16, 235, 81.481]], rtol=1e-6)


def test_psnr(pairs):
  references, images = pairs
  expected = [
    peak_signal_noise_ratio(reference_luma(a), reference_luma(b), data_range=255) for a, b in zip(*pairs, strict=True)
  ]
  np.testing.assert_allclose(psnr_y(images, references), expected, atol=1e-4)
  assert np.isinf(psnr_y(references, references)).all()


def test_ssim(pairs):
  references, images = pairs
  options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
  expected = [
    structural_similarity(reference_luma(a), reference_luma(b), **options) for a, b in zip(*pairs, strict=True)
  ]
  np.testing.assert_allclose(ssim_y(images, references), expected, atol=1e-4)
  np.testing.assert_allclose(ssim_y(references, references), 1, atol=1e-6)


def test_they_work_within_a_compiled_step_and_on_bfloat16(pairs):
  references, images = (jnp.asarray(x, jnp.bfloat16) for x in pairs)
  values = jax.jit(lambda a, b: (psnr_y(a, b), ssim_y(a, b), sharpness(a)))(images, references)
  assert all(value.shape == (4,) and value.dtype == jnp.float32 for value in values)


def test_sharpness_of_a_ramp_and_of_noise():
  ramp = np.broadcast_to(np.arange(32, dtype=np.float32)[:, None] / 255, (32, 32))[..., None].repeat(3, -1)
  flat = np.full_like(ramp, 0.3)
  np.testing.assert_allclose(sharpness(jnp.stack([ramp, flat])), [219 / 255, 0], atol=1e-4)


# By mmagic 1.2.0's code, with MATLAB's imresize for the half size.
@pytest.mark.parametrize(
  "name, expected", [("astronaut", 3.10045), ("coffee", 4.89126), ("chelsea", 2.62553), ("hubble_deep_field", 7.99608)]
)
def test_niqe(name, expected):
  assert niqe(getattr(skimage.data, name)()[:512, :512] / 255) == pytest.approx(expected, abs=1e-4)


def test_niqe_is_worse_for_noise_and_nothing_for_nothing():
  photograph = skimage.data.chelsea()[:288, :384] / 255
  noisy = (photograph + np.random.default_rng(0).normal(0, 0.1, photograph.shape)).clip(0, 1)
  assert niqe(noisy) > niqe(photograph) + 5
  assert np.isnan(niqe(np.zeros((192, 192, 3))))


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_shapes_must_agree(metric):
  with pytest.raises(ValueError, match="expected the same"):
    metric(jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 16, 20, 3)))
  with pytest.raises(ValueError, match="expected the same"):
    metric(jnp.zeros((16, 16, 3)), jnp.zeros((16, 16, 3)))


def test_sizes_must_do():
  with pytest.raises(ValueError, match="at least 11"):
    ssim_y(jnp.zeros((1, 10, 16, 3)), jnp.zeros((1, 10, 16, 3)))
  with pytest.raises(ValueError, match="at least 192"):
    niqe(np.zeros((191, 300, 3)))
