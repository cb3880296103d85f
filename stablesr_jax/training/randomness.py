"""Random keys: one a sample, so that what is drawn depends neither on devices, hosts nor accumulated parts."""

from typing import Any

import jax
import jax.numpy as jnp


def sample_keys(seed: int, step: Any, count: int) -> jax.Array:
  """(count,) keys, one for each sample of a step's batch: what is drawn does not depend on how the batch is divided."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def keys_for(keys: jax.Array, purpose: int) -> jax.Array:
  """The samples' keys (B,) for one purpose; 0 is `prepare`."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal noise (B, *shape), each sample's from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
