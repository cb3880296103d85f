"""Colour correction."""

import jax.numpy as jnp

from stablesr_jax.inference import color
from tests.reference_data import load, nhwc, relative_error


def images(data):
  return jnp.asarray(nhwc(data["content"])), jnp.asarray(nhwc(data["style"]))


def test_adain():
  data = load("color")
  assert relative_error(color.adain(*images(data)), nhwc(data["adain"])) <= 1e-5


def test_wavelet():
  data = load("color")
  high, low = color.wavelet_split(images(data)[0])
  assert relative_error(high, nhwc(data["high"])) <= 1e-5
  assert relative_error(low, nhwc(data["low"])) <= 1e-5
  assert relative_error(color.wavelet(*images(data)), nhwc(data["wavelet"])) <= 1e-5
