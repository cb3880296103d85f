"""Every network at small width, with synthetic weights that went through the converter."""

import jax.numpy as jnp
import pytest

from tests.reference_data import load, nhwc, relative_error


def test_time_aware_encoder_and_unet(small):
  data = load("small_unet")
  x, lr, t = nhwc(data["x"]), nhwc(data["lr"]), jnp.asarray(data["t"])
  structure = small.apply("time_aware_encoder", lr, t)
  for level, features in enumerate(structure):
    assert relative_error(features, nhwc(data[f"struct_{x.shape[2] >> level}"])) <= 1e-5
  prediction = small.apply("unet", x, t, data["context"], structure)
  assert relative_error(prediction, nhwc(data["eps"])) <= 1e-5


def test_autoencoder(small):
  data = load("small_autoencoder")
  moments, _ = small.apply("autoencoder", nhwc(data["image"]), method="encode")
  assert relative_error(moments, nhwc(data["moments"])) <= 1e-5
  decoded = small.apply("autoencoder", nhwc(data["z"]), method="decode")
  assert relative_error(decoded, nhwc(data["decoded"])) <= 1e-5


def test_controllable_feature_wrapping(small_cfw):
  data = load("small_cfw")
  moments, features = small_cfw.apply("autoencoder", nhwc(data["image"]), method="encode")
  assert relative_error(moments, nhwc(data["moments"])) <= 1e-5
  for i, feature in enumerate(features):
    assert relative_error(feature, nhwc(data[f"fea_{i}"])) <= 1e-5
  weights = [key.removeprefix("decoded_w") for key in data if key.startswith("decoded_w")]
  assert weights
  for weight in weights:
    decoded = small_cfw.apply("autoencoder", nhwc(data["z"]), features, float(weight), method="decode")
    assert relative_error(decoded, nhwc(data[f"decoded_w{weight}"])) <= 1e-5, weight


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_is_close(small, dtype):
  """bfloat16 has 8 bits of mantissa: a whole network may be off by a few percent, not more."""
  from stablesr_jax.config import ComputeConfig
  from stablesr_jax.models.components import modules

  data = load("small_unet")
  x, lr, t = nhwc(data["x"]), nhwc(data["lr"]), jnp.asarray(data["t"])
  half = modules(small.config, ComputeConfig(dtype=dtype))
  structure = half["time_aware_encoder"].apply({"params": small.params["time_aware_encoder"]}, lr, t)
  prediction = half["unet"].apply({"params": small.params["unet"]}, x, t, data["context"], structure)
  error = jnp.sqrt(jnp.mean((prediction - nhwc(data["eps"])) ** 2)) / jnp.sqrt(jnp.mean(nhwc(data["eps"]) ** 2))
  assert 1e-4 < error < 0.05
