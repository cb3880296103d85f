"""Convolutions with transformed filters, by themselves and in a denoiser."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from stablesr_jax import config as configs
from stablesr_jax.config import ComputeConfig, DiffusionConfig
from stablesr_jax.diffusion import samplers, schedule
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.models import winograd
from stablesr_jax.models.layers import conv, double
from stablesr_jax.models.parameters import flat
from stablesr_jax.parallel import data_mesh
from tests.micro import random_params

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="filters are transformed for a CPU only")


def normal(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


def difference(a: jax.Array, b: jax.Array) -> float:
  """The largest, relative to b's RMS."""
  return float(jnp.abs(a - b).max() / jnp.sqrt(jnp.mean(b**2)))


@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize(
  "shape", [(1, 2, 4, 8), (2, 6, 4, 24), (1, 34, 34, 8), (2, 5, 8, 8), (1, 1, 1, 8), (1, 33, 35, 8)]
)
def test_equals_the_direct_way(shape, enlarge):
  """Odd numbers of 2x2 results, few patches and many, several images."""
  x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 12)
  inputs = double(x) if enlarge else x
  direct = jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  convolve = winograd.convolve_enlarged if enlarge else winograd.convolve
  assert difference(convolve(x, winograd.transform(kernel, enlarge=enlarge)), direct) < 1e-5


@on_cpu
def test_a_layer_uses_what_it_prepared():
  layer = conv(256, ComputeConfig())
  x = normal(0, 1, 16, 16, 256)
  params = layer.init(jax.random.key(1), x)
  assert set(params) == {"params"}
  expected, prepared = layer.apply(params, x, mutable=["prepared"])
  assert prepared["prepared"]
  assert difference(layer.apply({**params, **prepared}, x), expected) < 1e-5
  # Whatever the size, without the kernel.
  odd, bias_alone = x[:, :15, :3], {"params": {"bias": params["params"]["bias"]}}
  assert difference(layer.apply({**bias_alone, **prepared}, odd), layer.apply(params, odd)) < 1e-5


def test_only_large_float32_layers_prepare():
  for layer, x in (
    (conv(256, ComputeConfig(dtype="bfloat16")), normal(0, 1, 16, 16, 256)),
    (conv(256, ComputeConfig()), normal(0, 1, 7, 8, 256)),
    (conv(128, ComputeConfig()), normal(0, 1, 16, 16, 256)),
    (conv(256, ComputeConfig(), size=1), normal(0, 1, 16, 16, 256)),
    (conv(256, ComputeConfig(), stride=2), normal(0, 1, 16, 16, 256)),
  ):
    params = layer.init(jax.random.key(1), x)
    assert not layer.apply(params, x, mutable=["prepared"])[1]


@on_cpu
def test_a_prepared_denoiser_predicts_the_same(monkeypatch):
  monkeypatch.setattr(winograd, "_LEAST_CHANNELS", 128)
  config = configs.tiny()
  assert config.unet is not None and config.time_aware_encoder is not None
  two_levels = {"channel_multipliers": (1, 2), "attention_levels": (1,)}
  config = dataclasses.replace(
    config,
    unet=dataclasses.replace(config.unet, **two_levels),
    time_aware_encoder=dataclasses.replace(config.time_aware_encoder, **two_levels),
  )
  params = {part: random_params(config, part) for part in ("unet", "time_aware_encoder")}
  denoiser = Denoiser(config, params, ComputeConfig(), data_mesh(jax.devices()[:1]), 1)
  steps = samplers.ddpm(DiffusionConfig(), schedule.respaced_timesteps(4))
  conditions = denoiser.condition(steps, normal(0, 1, 77, config.unet.context_dim), 1.0)
  x, lr = (normal(seed, 1, 32, 32, config.unet.latent_channels) for seed in (1, 2))
  predict = lambda: denoiser._predict(denoiser._params, x, lr, 1, conditions)
  expected = predict()
  denoiser.prepare(tile=32)
  [prepared, kept] = (set(flat(denoiser._params["unet"][name])) for name in ("prepared", "params"))
  assert prepared
  assert difference(predict(), expected) < 1e-5
  # What it reads no more is dropped, from its own tree only.
  assert set(flat(params["unet"])) - kept == {name.replace("filters", "kernel") for name in prepared}
  # Another tile size, a smallest level of odd size, and a restart from an interrupted preparation.
  whole = Denoiser(config, params, ComputeConfig(), data_mesh(jax.devices()[:1]), 1)
  x, lr = x[:, :22, :10], lr[:, :22, :10]
  assert difference(predict(), whole._predict(whole._params, x, lr, 1, conditions)) < 1e-5
  denoiser._prepared = False
  denoiser.prepare(tile=32)
  assert set(flat(denoiser._params["unet"]["prepared"])) == prepared
  predict()
