"""The mesh of devices, of what kind they are, and how arrays lie on it."""

import dataclasses
import functools
import math
import os
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax

from stablesr_jax import host_memory
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
    port = re.fullmatch(r".+:(\d{1,5})", coordinator)
    if port is None or not 0 < int(port[1]) < 2**16:
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
      named = [f"{name}={os.environ[name]}" for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES") if os.environ.get(name)]
      with_them = f" with {' and '.join(named)}" if named else ""
      raise UserError(f"JAX cannot start its devices{with_them}: {first_line(error)}") from error
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


def free_memory(mesh: jax.sharding.Mesh, most: float = math.inf) -> float:
  """The bytes that can still be taken on each of a mesh's devices; infinite where they do not tell, negative
  where more than `most` is in use.

  CPU devices share what the machine has, or what is left of this process's limit.

  Args:
    most: The bound of all that is in use on each of them.
  """
  if platform(mesh) == "cpu":
    devices = len(mesh.local_devices)
    return min(host_memory.available() / devices, most - host_memory.resident() / devices)
  stats = [device.memory_stats() or {} for device in mesh.local_devices]
  return min(min(s["bytes_limit"], most) - s["bytes_in_use"] if "bytes_limit" in s else most for s in stats)


def for_devices(compute: ComputeConfig, mesh: jax.sharding.Mesh) -> ComputeConfig:
  """The settings with what the mesh's devices are in them, unless they name another platform than the mesh's."""
  kind = platform(mesh)
  if compute.platform not in (None, kind):
    return compute
  channels = min(map(_flash_channels, mesh.devices.flat))
  return dataclasses.replace(compute, platform=kind, devices=mesh.size, flash_channels=channels)


def compute_for(precision: str, mesh: jax.sharding.Mesh) -> ComputeConfig:
  """The settings of a precision on a mesh; "auto" is float32 on CPU and bfloat16 on GPU and TPU."""
  dtype = "float32" if precision == "float32" or (precision == "auto" and platform(mesh) == "cpu") else "bfloat16"
  return for_devices(ComputeConfig(dtype=dtype), mesh)


def _flash_channels(device: Any) -> int:
  """The most channels of a head that the device's flash attention takes."""
  if device.platform == "tpu":
    # What the kernel's blocks leave room for in the memory of a core; the first ones have too little.
    return 0 if device.device_kind in ("TPU v2", "TPU v3") else 512
  if device.platform != "gpu" or "cuda" not in device.client.platform_version:
    return 0
  capability = tuple(int(part) for part in device.compute_capability.split("."))
  if capability < (8, 0) or not _has_cudnn():
    return 0
  return 256 if capability >= (9, 0) else 128


def _has_cudnn() -> bool:
  """Whether JAX finds cuDNN; it says so when it traces cuDNN's attention."""
  q = jax.ShapeDtypeStruct((1, 2, 1, 8), "bfloat16")
  try:
    jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), q, q, q)
  except (RuntimeError, NotImplementedError):
    return False
  return True


def on_each(function: Callable[..., Any], devices: int, inputs: Any, output: Any) -> Callable[..., Any]:
  """A function of arrays, each of the mesh's devices on its own part of them.

  For what XLA cannot divide by itself, within a program for arrays on a mesh of that many devices.

  Args:
    inputs: How the arguments are divided, as `jax.shard_map` takes it.
    output: How the result is.
  """
  mesh = jax.sharding.AbstractMesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=output, check_vma=False)


def replicated(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """Every device has the whole array."""
  return jax.NamedSharding(mesh, jax.P())


def batched(mesh: jax.sharding.Mesh) -> jax.NamedSharding:
  """The first axis is divided among the devices."""
  return jax.NamedSharding(mesh, jax.P("data"))
