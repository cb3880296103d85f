"""Each way of attention at the sizes of the full-size networks: its time here, or its program for a TPU.

    python benchmarks/attention.py [--batch 8] [--dtype bfloat16] [--repeats 20]
    python benchmarks/attention.py --topology v5e:2x2 --batch 32   # needs libtpu; compiles, and runs nothing

The ways take turns, so that a busy machine slows all. Of a program: bytes moved and memory for what is in between, of
one device; XLA counts what is in a loop once.
"""

import argparse
import dataclasses
import re
import statistics
import time
import typing

import jax

from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import AttentionImplementation, ComputeConfig
from stablesr_jax.models.attention import attention, implementation
from stablesr_jax.parallel import batched, data_mesh, for_devices, replicated

# Heads, tokens, channels of a head: the UNet's levels, and the autoencoder's middle for 512 pixels.
SIZES = ((5, 4096, 64), (10, 1024, 64), (20, 256, 64), (1, 4096, 512))
COLLECTIVE = re.compile(r" (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=int, default=1, help="pictures or tiles, of all devices together")
  parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
  parser.add_argument("--repeats", type=int, default=10)
  parser.add_argument("--topology", help="a TPU slice to compile for, as v5e:2x2; default: the devices here")
  args = parser.parse_args()
  if args.topology is None:
    mesh = data_mesh()
  else:
    from jax.experimental import topologies

    mesh = data_mesh(topologies.get_topology_desc(args.topology, platform="tpu").devices)
  compute = for_devices(ComputeConfig(dtype=args.dtype), mesh)
  print(f"{mesh.size} x {mesh.devices.flat[0].device_kind}, {args.dtype}, batch {args.batch}")
  sharding = batched(mesh) if args.batch % mesh.size == 0 else replicated(mesh)
  for heads, tokens, channels in SIZES:
    q = jax.ShapeDtypeStruct((args.batch, tokens, heads, channels), compute.jax_dtype, sharding=sharding)
    ways = {}
    for way in typing.get_args(AttentionImplementation):
      compiled = _compile(dataclasses.replace(compute, attention=way), q)
      name = f"{way} ({implementation(q, q, compute)})" if way == "auto" else way
      if args.topology is None:
        ways[name] = compiled
      else:
        print(f"  {q.shape} {name}: {_program(compiled)}", flush=True)
    times = _times(ways, q, args.repeats) if ways else {}
    for name, seconds in times.items():
      best, median = 1e3 * min(seconds), 1e3 * statistics.median(seconds)
      print(f"  {q.shape} {name}: {best:.2f} ms best, {median:.2f} ms median", flush=True)


def _compile(compute: ComputeConfig, q: jax.ShapeDtypeStruct) -> jax.stages.Compiled:
  with jax.default_matmul_precision(compute.precision):
    lowered = jax.jit(lambda q, k, v: attention(q, k, v, compute)).lower(q, q, q)
  return lowered.compile(compiler_options(compute.platform))


def _program(compiled: jax.stages.Compiled) -> str:
  text, cost, memory = compiled.as_text() or "", compiled.cost_analysis() or {}, compiled.memory_analysis()
  return (
    f"{cost['bytes accessed'] / 1e9:.2f} GB, {memory.temp_size_in_bytes / 2**20:.0f} MiB between, "
    f"{text.count(' while(')} loops, {len(COLLECTIVE.findall(text))} collectives"
  )


def _times(ways: dict[str, jax.stages.Compiled], q: jax.ShapeDtypeStruct, repeats: int) -> dict[str, list[float]]:
  qkv = [jax.device_put(jax.random.normal(jax.random.key(i), q.shape, q.dtype), q.sharding) for i in range(3)]
  times: dict[str, list[float]] = {name: [] for name in ways}
  for _ in range(repeats + 1):
    for name, compiled in ways.items():
      began = time.perf_counter()
      jax.block_until_ready(compiled(*qkv))
      times[name].append(time.perf_counter() - began)
  return {name: seconds[1:] for name, seconds in times.items()}


if __name__ == "__main__":
  main()
