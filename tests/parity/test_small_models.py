"""Every network at small width, with synthetic weights that went through the converter."""

import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.config import ComputeConfig
from tests.reference_data import fidelity_weights, load, nhwc, relative_error, rms

# Of the largest difference to the answer's RMS. Both sides are float32 and every processor sums in an order of its own,
# which shows most in the decoder: 1.3e-5 with AVX2, less than 1e-5 with AVX-512. All else keeps 1e-5 on both.
BOUND, DECODER_BOUND = 1e-5, 2e-5


def test_time_aware_encoder_and_unet(small):
  data = load("small_unet")
  x, lr, t = nhwc(data["x"]), nhwc(data["lr"]), jnp.asarray(data["t"])
  structure = small.apply("time_aware_encoder", lr, t)
  for level, features in enumerate(structure):
    assert relative_error(features, nhwc(data[f"struct_{x.shape[2] >> level}"])) <= BOUND
  prediction = small.apply("unet", x, t, data["context"], structure)
  assert relative_error(prediction, nhwc(data["eps"])) <= BOUND


def test_autoencoder(small):
  data = load("small_autoencoder")
  moments, _ = small.apply("autoencoder", nhwc(data["image"]), method="encode")
  assert relative_error(moments, nhwc(data["moments"])) <= BOUND
  decoded = small.apply("autoencoder", nhwc(data["z"]), method="decode")
  assert relative_error(decoded, nhwc(data["decoded"])) <= DECODER_BOUND


def test_controllable_feature_wrapping(small_cfw):
  data = load("small_cfw")
  moments, features = small_cfw.apply("autoencoder", nhwc(data["image"]), method="encode")
  assert relative_error(moments, nhwc(data["moments"])) <= BOUND
  for i, feature in enumerate(features):
    assert relative_error(feature, nhwc(data[f"fea_{i}"])) <= BOUND
  for key, weight in fidelity_weights(data).items():
    decoded = small_cfw.apply("autoencoder", nhwc(data["z"]), features, weight, method="decode")
    assert relative_error(decoded, nhwc(data[key])) <= DECODER_BOUND, key


@pytest.mark.slow
def test_half_precision_is_close(small):
  """bfloat16 has 8 bits of mantissa: a whole network may be off by a few percent, not more."""
  data, compute = load("small_unet"), ComputeConfig(dtype="bfloat16")
  x, lr, t = nhwc(data["x"]), nhwc(data["lr"]), jnp.asarray(data["t"])
  structure = small.apply("time_aware_encoder", lr, t, compute=compute)
  assert all(features.dtype == jnp.bfloat16 for features in structure)
  prediction = small.apply("unet", x, t, data["context"], structure, compute=compute)
  assert prediction.dtype == np.float32
  error = rms(prediction - nhwc(data["eps"])) / rms(data["eps"])
  assert 1e-4 < error < 0.05
