"""The mesh of devices, of what kind they are, and how arrays lie on it."""

import dataclasses
import os
import re
import typing
from collections.abc import Sequence
from typing import Any

import jax

from stablesr_jax.config import ComputeConfig, Platform
from stablesr_jax.errors import UserError, first_line

# What tells a process that it is one of several, for clusters where JAX finds out the rest by itself.
_CLUSTER_VARIABLES = {"SLURM_NTASKS": "1", "OMPI_COMM_WORLD_SIZE": "1", "JAX_COORDINATOR_ADDRESS": ""}


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
  """Joins the run's other processes, if there are any; call it before anything that uses a device.

  Args:
    coordinator: "host:port" of the first process. Under Slurm, Open MPI and on TPU pods all three are found out.

  Raises:
    UserError: Only some of the arguments are given, they do not fit each other, or the others are not found.
  """
  given = [value is not None for value in (coordinator, processes, process)]
  if any(given) and not all(given):
    raise UserError("coordinator, processes and process: give all three or none")
  if coordinator is not None and processes is not None and process is not None:
    if not re.fullmatch(r".+:\d+", coordinator):
      raise UserError(f"coordinator {coordinator}: must be HOST:PORT")
    if processes < 1:
      raise UserError(f"processes {processes}: must be at least 1")
    if not 0 <= process < processes:
      raise UserError(f"process {process}: must be 0 to processes - 1 ({processes - 1})")
  pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
  if all(given) or pod or any(os.environ.get(name, one) != one for name, one in _CLUSTER_VARIABLES.items()):
    try:
      jax.distributed.initialize(coordinator, processes, process)
    except (jax.errors.JaxRuntimeError, ValueError, KeyError) as error:  # a cluster's variables may be wrong, too
      raise UserError(f"the processes of this run cannot be joined: {first_line(error)}") from error


def start_devices() -> None:
  """Starts the devices that JAX is set to use; call it before a model is loaded, and after `connect`.

  Raises:
    UserError: There are none.
  """
  setting = os.environ.get("JAX_PLATFORMS")
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # JAX asserts that there is one
    if not setting:
      raise UserError(f"JAX cannot start its devices: {first_line(error)}") from error
    reason = f" ({first_line(error)})" if str(error) else ""
    raise UserError(f"JAX_PLATFORMS={setting}: JAX finds no such device here{reason}") from error


def data_mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """All devices (of all hosts), or the given ones, along one axis "data"."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def platform(mesh: jax.sharding.Mesh | None = None) -> Platform:
  """The kind of a mesh's devices, by default of JAX's default devices. Nothing else asks for it.

  Raises:
    UserError: The devices are neither CPUs nor GPUs nor TPUs.
  """
  device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
  for known in typing.get_args(Platform):
    if device.platform == known:
      return known
  raise UserError(f"devices of platform {device.platform!r}: expected {', '.join(typing.get_args(Platform))}")


def for_devices(compute: ComputeConfig, mesh: jax.sharding.Mesh) -> ComputeConfig:
  """The settings with the mesh's platform in them, unless they name one."""
  return dataclasses.replace(compute, platform=compute.platform or platform(mesh))


def replicated(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Every device has the whole array."""
  return jax.NamedSharding(mesh, jax.P())


def batched(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """The first axis is divided among the devices."""
  return jax.NamedSharding(mesh, jax.P("data"))
