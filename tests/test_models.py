"""What the networks promise beyond the published answers: sizes, ablations, attention, padding of features."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from stablesr_jax import config as configs
from stablesr_jax.config import ComputeConfig
from stablesr_jax.models.attention import attention
from stablesr_jax.models.components import abstract_params, modules
from tests.tiny import random_params


def millions(tree, *, containing: str = "") -> float:
  leaves = flatten_dict(tree, sep="/")
  return sum(np.prod(leaf.shape) for path, leaf in leaves.items() if containing in path) / 1e6


def test_full_size_parameters_are_the_published_ones():
  config = configs.stablesr_512()
  unet, autoencoder = abstract_params(config, "unet"), abstract_params(config, "autoencoder")
  assert millions(abstract_params(config, "time_aware_encoder")) == pytest.approx(52.5, abs=0.05)
  assert millions(unet, containing="/sft/") == pytest.approx(53.0, abs=0.05)
  assert millions(unet) - millions(unet, containing="/sft/") == pytest.approx(865.9, abs=0.05)
  assert millions(autoencoder, containing="/cfw_") == pytest.approx(44.4, abs=0.05)
  assert sum(path.endswith("sft/norm/scale") for path in flatten_dict(unet, sep="/")) == 22


def run_unet(config: configs.ModelConfig, seed: int = 0):
  """A tiny UNet's answer, with parameters that are nowhere zero, and the structure maps."""
  parts = modules(config)
  assert config.unet and config.time_aware_encoder
  params = {name: random_params(config, name) for name in ("unet", "time_aware_encoder")}
  latent = (1, 16, 16, config.unet.latent_channels)
  lr = jax.random.normal(jax.random.key(seed), latent)
  encode = jax.jit(lambda t: parts["time_aware_encoder"].apply({"params": params["time_aware_encoder"]}, lr, t))
  denoise = jax.jit(
    lambda structure: parts["unet"].apply(
      {"params": params["unet"]}, jnp.ones(latent), jnp.array([500]), jnp.ones((1, 7, 64)), structure
    )
  )
  return encode, denoise, params


def test_time_awareness_can_be_switched_off():
  config = configs.tiny()
  encode, _, _ = run_unet(config)
  assert not np.allclose(encode(jnp.array([10]))[0], encode(jnp.array([900]))[0])
  config = dataclasses.replace(
    config, time_aware_encoder=dataclasses.replace(config.time_aware_encoder, time_aware=False)
  )
  encode, _, params = run_unet(config)
  np.testing.assert_array_equal(encode(jnp.array([10]))[0], encode(jnp.array([900]))[0])
  assert not any("time" in path for path in flatten_dict(params["time_aware_encoder"], sep="/"))


@pytest.mark.parametrize("conditioning", ["sft", "add"])
def test_structure_steers_the_unet(conditioning):
  config = configs.tiny()
  config = dataclasses.replace(config, unet=dataclasses.replace(config.unet, conditioning=conditioning))
  encode, denoise, params = run_unet(config)
  structure = encode(jnp.array([500]))
  assert not np.allclose(denoise(structure), denoise([2 * s for s in structure]))
  paths = flatten_dict(params["unet"], sep="/")
  assert any("/sft/" in path for path in paths) == (conditioning == "sft")
  assert any("/addition/" in path for path in paths) == (conditioning == "add")


def test_a_plain_unet_needs_no_structure():
  config = configs.tiny()
  config = dataclasses.replace(config, unet=dataclasses.replace(config.unet, conditioning="none"))
  _, denoise, params = run_unet(config)
  assert denoise(None).shape == (1, 16, 16, config.unet.latent_channels)
  assert not any("sft" in path or "addition" in path for path in flatten_dict(params["unet"], sep="/"))


@pytest.mark.parametrize("implementation", ["xla", "chunked", "auto"])
@pytest.mark.parametrize("queries, keys", [(64, 64), (37, 5), (2048, 2100)])
def test_attention_implementations_agree(implementation, queries, keys):
  q, k, v = (jax.random.normal(jax.random.key(i), (2, n, 3, 8)) for i, n in enumerate((queries, keys, keys)))
  scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(8)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  expected = np.einsum("bhnm,bmhd->bnhd", weights / weights.sum(-1, keepdims=True), v)
  compute = ComputeConfig(attention=implementation)
  np.testing.assert_allclose(attention(q, k, v, compute), expected, atol=2e-5)


def test_one_prompt_serves_a_batch():
  q = jax.random.normal(jax.random.key(0), (3, 10, 2, 8))
  k, v = jax.random.normal(jax.random.key(1), (2, 1, 6, 2, 8))
  repeated = (jnp.repeat(a, 3, axis=0) for a in (k, v))
  np.testing.assert_array_equal(attention(q, k, v, ComputeConfig()), attention(q, *repeated, ComputeConfig()))


def test_causal_attention_does_not_look_ahead():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 8))
  later = v.at[:, 4:].set(100.0)
  a, b = (attention(q, k, x, ComputeConfig(), causal=True) for x in (v, later))
  np.testing.assert_array_equal(a[:, :4], b[:, :4])
  assert not np.allclose(a[:, 4:], b[:, 4:])


def test_fidelity_weight_is_traced_and_zero_leaves_the_plain_decoder():
  config = configs.tiny()
  module = modules(config)["autoencoder"]
  params = random_params(config, "autoencoder")
  image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
  _, features = jax.jit(lambda image: module.apply({"params": params}, image, method="encode"))(image)
  z = jax.random.normal(jax.random.key(2), (1, 4, 4, config.autoencoder.latent_channels))
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
