"""The mesh of devices and how arrays lie on it."""

from collections.abc import Sequence
from typing import Any

import jax


def data_mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """All devices (of all hosts), or the given ones, along one axis "data"."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Every device has the whole array."""
  return jax.NamedSharding(mesh, jax.P())


def batched(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """The first axis is divided among the devices."""
  return jax.NamedSharding(mesh, jax.P("data"))
