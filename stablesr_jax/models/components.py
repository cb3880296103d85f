"""The parts of a model by name: their modules, and the shapes of their parameters without computing any."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesr_jax.config import ComputeConfig, ModelConfig
from stablesr_jax.models.kl_autoencoder import Autoencoder
from stablesr_jax.models.parameters import Params
from stablesr_jax.models.rrdbnet import RRDBNet
from stablesr_jax.models.text_encoder import TextEncoder
from stablesr_jax.models.time_aware_encoder import TimeAwareEncoder
from stablesr_jax.models.unet import UNet

COMPONENTS = {
  "unet": UNet,
  "time_aware_encoder": TimeAwareEncoder,
  "autoencoder": Autoencoder,
  "text_encoder": TextEncoder,
  "precleaner": RRDBNet,
}


def modules(config: ModelConfig, compute: ComputeConfig = ComputeConfig()) -> dict[str, nn.Module]:
  """The modules of a model's parts, those it lacks left out."""
  parts = {name: getattr(config, name) for name in COMPONENTS}
  return {name: COMPONENTS[name](part, compute) for name, part in parts.items() if part is not None}


def init(config: ModelConfig, component: str, key: jax.Array) -> Params:
  """Fresh float32 parameters of one part."""
  return jax.jit(modules(config)[component].init)(key, *_example(config, component))["params"]


def abstract_params(config: ModelConfig, component: str) -> Params:
  """The parameters of one part as `jax.ShapeDtypeStruct`, float32."""
  parts: dict[str, Any] = {name: getattr(config, name) if name == component else None for name in COMPONENTS}
  kept = _abstract_params(ModelConfig(**parts), component)
  return jax.tree.map(lambda leaf: leaf, kept)  # a tree of the caller's own


@functools.cache
def _abstract_params(config: ModelConfig, component: str) -> Params:
  """Tracing a network takes seconds, and a model's loading, conversion and training ask for its shapes again."""
  return jax.eval_shape(lambda key: init(config, component, key), jax.random.key(0))


def _example(config: ModelConfig, component: str) -> tuple[Any, ...]:
  """Arguments for one call of a part, as small as it takes."""
  if component == "unet" and config.unet is not None:
    c = config.unet
    side = 2 ** (len(c.channel_multipliers) - 1)
    structure = [jnp.zeros((1, side >> i, side >> i, c.structure_channels)) for i in range(len(c.channel_multipliers))]
    latent, context = jnp.zeros((1, side, side, c.latent_channels)), jnp.zeros((1, 1, c.context_dim))
    return latent, jnp.zeros(1), context, structure
  if component == "time_aware_encoder" and config.time_aware_encoder is not None:
    c = config.time_aware_encoder
    side = 2 ** (len(c.channel_multipliers) - 1)
    return jnp.zeros((1, side, side, c.latent_channels)), jnp.zeros(1)
  if component == "autoencoder" and config.autoencoder is not None:
    return (jnp.zeros((1, config.autoencoder.downsampling, config.autoencoder.downsampling, 3)),)
  if component == "text_encoder" and config.text_encoder is not None:
    return (jnp.zeros((1, config.text_encoder.context_length), jnp.int32),)
  if component == "precleaner" and config.precleaner is not None:
    return (jnp.zeros((1, 4, 4, 3)),)
  raise ValueError(f"the model has no {component}")
