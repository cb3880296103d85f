"""What the networks promise beyond the published answers: sizes, ablations, padding of features."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.config import ComputeConfig, ModelConfig, stablesr_512
from stablesr_jax.models.components import abstract_params, modules
from stablesr_jax.models.parameters import flat
from stablesr_jax.models.unet import FeedForward
from tests import micro


def millions(tree, *, containing: str = "") -> float:
  leaves = flat(tree)
  return sum(np.prod(leaf.shape) for path, leaf in leaves.items() if containing in path) / 1e6


def test_full_size_parameters_are_the_published_ones():
  config = stablesr_512()
  unet, autoencoder = abstract_params(config, "unet"), abstract_params(config, "autoencoder")
  assert millions(abstract_params(config, "time_aware_encoder")) == pytest.approx(52.5, abs=0.05)
  assert millions(unet, containing="/sft/") == pytest.approx(53.0, abs=0.05)
  assert millions(unet) - millions(unet, containing="/sft/") == pytest.approx(865.9, abs=0.05)
  assert millions(autoencoder, containing="/cfw_") == pytest.approx(44.4, abs=0.05)
  assert sum(path.endswith("sft/norm/scale") for path in flat(unet)) == 22


def unet_of(conditioning: str) -> tuple[ModelConfig, Any]:
  """The micro model with a UNet steered in this way, and (structure maps) -> its answer."""
  config = dataclasses.replace(micro.MODEL, unet=dataclasses.replace(micro.UNET, conditioning=conditioning))
  module, params = modules(config)["unet"], micro.random_params(config, "unet")
  x, context = jnp.ones((1, 8, 8, micro.UNET.latent_channels)), jnp.ones((1, 7, micro.UNET.context_dim))
  return config, jax.jit(lambda structure: module.apply({"params": params}, x, jnp.array([500]), context, structure))


@pytest.mark.parametrize("aware", [True, False])
def test_time_awareness_can_be_switched_off(aware):
  encoder = dataclasses.replace(micro.ENCODER, time_aware=aware)
  config = dataclasses.replace(micro.MODEL, time_aware_encoder=encoder)
  module, params = modules(config)["time_aware_encoder"], micro.random_params(config, "time_aware_encoder")
  lr = jax.random.normal(jax.random.key(0), (1, 8, 8, encoder.latent_channels))
  encode = jax.jit(lambda t: module.apply({"params": params}, lr, t)[0])
  assert np.array_equal(encode(jnp.array([10])), encode(jnp.array([900]))) != aware
  assert any("time" in path for path in flat(params)) == aware


@pytest.mark.parametrize("conditioning", ["sft", "add"])
def test_structure_steers_the_unet(conditioning):
  config, denoise = unet_of(conditioning)
  structure = jax.random.normal(jax.random.key(0), (1, 8, 8, micro.UNET.structure_channels))
  assert not np.allclose(denoise([structure]), denoise([2 * structure]))
  paths = flat(abstract_params(config, "unet"))
  assert any("/sft/" in path for path in paths) == (conditioning == "sft")
  assert any("/addition/" in path for path in paths) == (conditioning == "add")


def test_a_plain_unet_needs_no_structure():
  config, denoise = unet_of("none")
  assert denoise(None).shape == (1, 8, 8, micro.UNET.latent_channels)
  assert not any("sft" in path or "addition" in path for path in flat(abstract_params(config, "unet")))


def test_only_a_cpu_takes_a_feed_forward_layer_in_parts():
  x = jax.ShapeDtypeStruct((1, 1024, 8), jnp.float32)
  for platform, products in (("cpu", 4), ("gpu", 2), ("tpu", 2), (None, 2)):
    module = FeedForward(8, ComputeConfig(platform=platform))
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    assert str(jax.make_jaxpr(module.apply)(params, x)).count("dot_general") == products


def test_fidelity_weight_is_traced_and_zero_leaves_the_plain_decoder():
  module, params = modules(micro.MODEL)["autoencoder"], micro.random_params(micro.MODEL, "autoencoder")
  image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
  _, features = jax.jit(lambda image: module.apply({"params": params}, image, method="encode"))(image)
  z = jax.random.normal(jax.random.key(2), (1, 4, 4, micro.AUTOENCODER.latent_channels))
  traces = []

  @jax.jit
  def decode(weight):
    traces.append(weight)
    return module.apply({"params": params}, z, features, weight, method="decode")

  plain = jax.jit(lambda z: module.apply({"params": params}, z, method="decode"))(z)
  np.testing.assert_allclose(decode(0.0), plain, rtol=1e-4, atol=1e-4)
  half, whole = decode(0.5), decode(1.0)
  assert not np.allclose(half, whole) and not np.allclose(half, plain)
  assert len(traces) == 1
