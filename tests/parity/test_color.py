"""Colour correction."""

from stablesr_jax.inference import color
from tests.reference_data import load, nhwc, relative_error


def test_adain():
  data = load("color")
  assert relative_error(color.adain(nhwc(data["content"]), nhwc(data["style"])), nhwc(data["adain"])) <= 1e-5


def test_wavelet():
  data = load("color")
  high, low = color.wavelet_split(nhwc(data["content"]))
  assert relative_error(high, nhwc(data["high"])) <= 1e-5
  assert relative_error(low, nhwc(data["low"])) <= 1e-5
  assert relative_error(color.wavelet(nhwc(data["content"]), nhwc(data["style"])), nhwc(data["wavelet"])) <= 1e-5
