"""Convolutions with transformed filters, by themselves and in a denoiser."""

import dataclasses

import jax
import numpy as np
import pytest

from stablesr_jax import config as configs
from stablesr_jax.config import ComputeConfig, DiffusionConfig
from stablesr_jax.diffusion import samplers, schedule
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.models import winograd
from stablesr_jax.models.components import abstract_params
from stablesr_jax.models.layers import Conv, upsample
from stablesr_jax.models.parameters import flat
from stablesr_jax.parallel import data_mesh
from tests.micro import random_params

CPU = ComputeConfig(platform="cpu")


def normal(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


def difference(a: jax.Array, b: jax.Array) -> float:
  """The largest, relative to b's RMS."""
  return float(np.abs(a - b).max() / np.sqrt(np.mean(b**2)))


@pytest.mark.parametrize("upsampling", [False, True])
@pytest.mark.parametrize(
  "shape", [(1, 2, 4, 8), (2, 6, 4, 24), (1, 34, 34, 8), (2, 5, 8, 8), (1, 1, 1, 8), (1, 33, 35, 8)]
)
def test_equals_the_direct_way(shape, upsampling):
  """Odd numbers of 2x2 results, few patches and many, several images."""
  x, kernel = normal(0, *shape), normal(1, 3, 3, shape[-1], 12)
  inputs = upsample(x) if upsampling else x
  direct = jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  convolve = winograd.convolve_upsampled if upsampling else winograd.convolve
  assert difference(convolve(x, winograd.transform(kernel, upsample=upsampling)), direct) < 1e-5


@pytest.mark.parametrize("name, upsampling", [("conv1", False), ("upsample_1", True)])
def test_a_layer_uses_its_filters(name, upsampling):
  layer, x = Conv(256, CPU, upsample=upsampling), normal(0, 1, 5, 8, 256)
  params = {name: layer.init(jax.random.key(1), x)["params"] | {"bias": normal(2, 256)}}
  prepared = winograd.prepare(params, CPU)
  assert set(prepared[name]) == {"filters", "bias"}
  assert set(params[name]) == {"kernel", "bias"}  # what was given is left alone
  expected = layer.apply({"params": params[name]}, x)
  assert difference(layer.apply({"params": prepared[name]}, x), expected) < 1e-5


def test_filters_of_another_kind_of_layer_are_refused():
  layer, x = Conv(256, CPU, upsample=True), normal(0, 1, 8, 8, 256)
  prepared = winograd.prepare({"conv": layer.init(jax.random.key(1), x)["params"]}, CPU)
  with pytest.raises(ValueError, match="16 filters: expected 9"):
    layer.apply({"params": prepared["conv"]}, x)


def test_donated_kernels_are_freed():
  params = {"conv": {"kernel": normal(0, 3, 3, 256, 256), "bias": normal(1, 256)}}
  winograd.prepare(params, CPU)
  assert not params["conv"]["kernel"].is_deleted()
  winograd.prepare(params, CPU, donate=True)
  assert params["conv"]["kernel"].is_deleted() and not params["conv"]["bias"].is_deleted()


@pytest.mark.parametrize(
  "compute", [ComputeConfig(), ComputeConfig(platform="gpu"), ComputeConfig("bfloat16", platform="cpu")]
)
def test_only_a_cpu_in_float32_gains(compute):
  params = {"conv": {"kernel": normal(0, 3, 3, 256, 256)}}
  assert winograd.prepare(params, compute) is params


def test_only_large_layers_without_a_stride_gain():
  """In the published model: which layers, and that each gets the filters of its kind."""
  shapes = abstract_params(configs.stablesr_512(), "unet")
  chosen = {path for path, leaf in flat(shapes).items() if winograd._gains(path.rpartition("/")[0], leaf.shape)}
  convolutions = {path for path, leaf in flat(shapes).items() if leaf.shape[:2] == (3, 3)}
  left_out = {"conv_in/kernel", "conv_out/kernel"} | {path for path in convolutions if "downsample_" in path}
  left_out |= {path for path in convolutions if "/sft/" in path}  # they have 128 channels inside
  assert chosen == convolutions - left_out
  assert {path for path in chosen if "upsample_" in path} == {f"upsample_{i}/conv/kernel" for i in range(3)}


@pytest.mark.slow
def test_a_prepared_denoiser_predicts_the_same(monkeypatch):
  monkeypatch.setattr(winograd, "_MIN_CHANNELS", 128)
  config = configs.tiny()
  assert config.unet is not None and config.time_aware_encoder is not None
  two_levels = {"channel_multipliers": (1, 2), "attention_levels": (1,)}
  config = dataclasses.replace(
    config,
    unet=dataclasses.replace(config.unet, **two_levels),
    time_aware_encoder=dataclasses.replace(config.time_aware_encoder, **two_levels),
  )
  params = {part: random_params(config, part) for part in ("unet", "time_aware_encoder")}
  prepared = {part: winograd.prepare(tree, CPU) for part, tree in params.items()}
  assert all(any("filters" in path for path in flat(tree)) for tree in prepared.values())
  assert "upsample_0/conv/filters" in flat(prepared["unet"])
  mesh = data_mesh(jax.devices()[:1])
  steps = samplers.ddpm(DiffusionConfig(), schedule.respaced_timesteps(4))
  prompts = normal(0, 1, 77, config.unet.context_dim)
  direct, transformed = (Denoiser(config, tree, CPU, mesh, 1) for tree in (params, prepared))
  # Odd at the smallest scale.
  x, lr = (normal(seed, 1, 22, 10, config.unet.latent_channels) for seed in (1, 2))
  expected, result = (d.predict(x, lr, steps.timesteps[1], d.condition(prompts, 1.0)) for d in (direct, transformed))
  assert difference(result, expected) < 1e-5
