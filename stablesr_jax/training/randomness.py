"""Random keys: one a sample, so that what is drawn depends neither on devices, hosts nor accumulated parts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def sample_keys(seed: int, step: int | Int[Array, ""], count: int) -> Key[Array, "{count}"]:
  """Keys, one for each sample of a step's batch: what is drawn does not depend on how the batch is divided."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def keys_for(keys: Key[Array, " b"], purpose: int | Int[Array, ""]) -> Key[Array, " b"]:
  """The samples' keys for one purpose; 0 is `prepare`."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, purpose)


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
  """Standard normal noise (B, *shape), each sample's from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
