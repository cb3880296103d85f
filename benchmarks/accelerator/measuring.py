"""What the sections share: lines of JSON, clocks, random weights and pictures."""

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stablesr_jax import config as sizes
from stablesr_jax.checkpoints.store import NULL_PROMPT
from stablesr_jax.config import AutoencoderConfig, ComputeConfig, ModelConfig, TimeAwareEncoderConfig, UNetConfig
from stablesr_jax.models.components import abstract_params
from stablesr_jax.parallel import data_mesh, for_devices, replicated


class Run:
  """One section's process.

  Attributes:
    cases: What the section is to go through, in this order.
    tiny: Whether sizes are for a CPU.
    compiling: Whether programs are only to be compiled: everything is called once, and times are no measurements.
    peak: The device's measured TFLOP/s, if they are known.
    output: A folder for what is no number, or None.
    config: The network's architecture, without a text tower.
  """

  def __init__(self, args: argparse.Namespace):
    self.section: str = args.section
    self.cases: Sequence[str] = args.cases
    self.tiny: bool = args.tiny
    self.compiling: bool = args.compile
    self.peak: float | None = args.peak
    self.output: pathlib.Path | None = args.output
    self.config = _tiny() if args.tiny else dataclasses.replace(sizes.stablesr_512(), text_encoder=None)
    self.tile = 16 if args.tiny else 64  # latent pixels
    self._began, self._limit = time.perf_counter(), args.limit
    self._compiled = {"compile_s": 0.0, "programs": 0, "found": 0}
    jax.monitoring.register_event_duration_secs_listener(self._count_compiling)
    jax.monitoring.register_event_listener(self._count_found)

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The first device alone. JAX starts its devices here, which a section without networks leaves to its child."""
    return data_mesh(jax.devices()[:1])

  def compute(self, dtype: str = "bfloat16", **options: Any) -> ComputeConfig:
    return for_devices(ComputeConfig(dtype=dtype, **options), self.mesh)  # type: ignore[arg-type]

  def row(self, what: str, **values: Any) -> None:
    """Writes one line.

    Beside the values it has the most memory that this process has had on the device so far, and, since the line before,
    the seconds spent on compiling or fetching programs, their number, and how many of them the cache had.
    """
    line: dict[str, Any] = {"section": self.section, "what": what} | ({"pass": "compile"} if self.compiling else {})
    line |= {name: _rounded(value) for name, value in values.items()}
    stats = self.mesh.devices.flat[0].memory_stats() if "mesh" in self.__dict__ else None
    if stats and "peak_bytes_in_use" in stats:
      line["process_peak_gib"] = round(stats["peak_bytes_in_use"] / 2**30, 2)
    if self._compiled["programs"]:
      line |= {name: _rounded(value) for name, value in self._compiled.items()}
      self._compiled.update(compile_s=0.0, programs=0, found=0)
    line["t"] = round(time.perf_counter() - self._began, 1)
    print(json.dumps(line, default=str), flush=True)

  @contextlib.contextmanager
  def trying(self, what: str, **values: Any) -> Iterator[None]:
    """A failure becomes a line, its traceback goes to standard error, and the section goes on."""
    try:
      yield
    except Exception as error:
      traceback.print_exc()
      self.row(what, **values, failed=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

  def left(self) -> float:
    """Seconds until this process is ended."""
    return self._limit - (time.perf_counter() - self._began)

  def affordable(self, cases: Sequence[Any] | None = None) -> Iterator[Any]:
    """The cases one by one, as long as there is time for another that takes as long as the longest so far."""
    longest = 5.0
    for case in self.cases if cases is None else cases:
      began = time.perf_counter()
      if self.left() < longest:
        self.row("left out", case=case, why=f"{self.left():.0f} s left, one took {longest:.0f} s")
        continue
      yield case
      longest = max(longest, time.perf_counter() - began)

  def seconds(self, call: Callable[[], Any], repeats: int) -> float:
    """The median of calls, each of them waited for."""
    return float(np.median([clock(call) for _ in range(self.repeats(repeats))]))

  def seconds_queued(self, call: Callable[[], Any], repeats: int) -> float:
    """The mean of calls of which only the last is waited for."""
    repeats = self.repeats(repeats)

    def queue() -> Any:
      for _ in range(repeats):
        last = call()  # the one before is freed
      return last

    return clock(queue) / repeats

  def repeats(self, repeats: int) -> int:
    return 1 if self.compiling else min(repeats, 2) if self.tiny else repeats

  def _count_compiling(self, event: str, duration_secs: float, **_: Any) -> None:
    if event.endswith("backend_compile_duration"):
      self._compiled["compile_s"] += duration_secs
      self._compiled["programs"] += 1

  def _count_found(self, event: str, **_: Any) -> None:
    self._compiled["found"] += event.endswith("/cache_hits")

  def weights(self, config: ModelConfig, *parts: str, dtype: str = "bfloat16") -> dict[str, Any]:
    """Random parameters of a plausible size for each part, and the null prompt, made on the device by one program."""
    abstract = {part: abstract_params(config, part) for part in parts}
    abstract[NULL_PROMPT] = jax.ShapeDtypeStruct((77, config.unet.context_dim if config.unet else 1), jnp.float32)
    make = jax.jit(functools.partial(_draw, abstract, dtype), out_shardings=replicated(self.mesh))
    return jax.block_until_ready(make(jax.random.key(0)))


def clock(call: Callable[[], Any]) -> float:
  """The seconds of one call."""
  began = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - began


def memory(compiled: jax.stages.Compiled) -> dict[str, float]:
  """What a program needs, by XLA's own account."""
  account = compiled.memory_analysis()
  kinds = {"arguments_gib": "argument_size_in_bytes", "temporary_gib": "temp_size_in_bytes"}
  return {name: getattr(account, kind, 0) / 2**30 for name, kind in kinds.items()}


def millions(tree: Any) -> float:
  """The number of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6


def photograph(side: int, seed: int = 0) -> np.ndarray:
  """(side, side, 3) float32 in [0, 1]: large and small structure."""
  rng = np.random.default_rng(seed)
  coarse = np.kron(rng.random((8, 8, 3), np.float32), np.ones((side // 8, side // 8, 1), np.float32))
  return (0.8 * coarse + 0.2 * rng.random((side, side, 3), np.float32)).astype(np.float32)


def narrow(tiny: bool) -> ModelConfig:
  """The published architecture at small width, as the tests of parity have it."""
  if tiny:
    return _tiny()
  return ModelConfig(
    unet=UNetConfig(channels=32, head_channels=16, context_dim=64, structure_channels=32),
    time_aware_encoder=TimeAwareEncoderConfig(channels=32, out_channels=32),
    autoencoder=AutoencoderConfig(channels=32),
    text_encoder=None,
  )


def _tiny() -> ModelConfig:
  """Every kind of block, and no more: a CPU spends its time compiling. CFW needs three levels."""
  narrow: dict[str, Any] = {"channels": 16, "blocks_per_level": 1, "norm_groups": 2}
  flat: dict[str, Any] = narrow | {"channel_multipliers": (1,), "attention_levels": ()}
  return ModelConfig(
    unet=UNetConfig(**flat, head_channels=8, context_dim=8, structure_channels=16, sft_hidden_channels=8),
    time_aware_encoder=TimeAwareEncoderConfig(**flat, out_channels=16),
    autoencoder=AutoencoderConfig(**narrow, channel_multipliers=(1, 1, 1), attention=False, cfw_growth=4, cfw_blocks=1),
    text_encoder=None,
  )


def _draw(abstract: dict[str, Any], dtype: str, key: jax.Array) -> dict[str, Any]:
  """All leaves are scaled parts of one table, equal where shape and name are: draws of its own for each of 1467 leaves
  take minutes to compile."""
  table = jax.random.normal(key, (max(leaf.size for leaf in jax.tree.leaves(abstract)),), jnp.dtype(dtype))

  @functools.cache
  def fill(name: str, shape: tuple[int, ...]) -> jax.Array:
    values = table[: math.prod(shape)].reshape(shape)
    if name == "kernel":
      return values * (0.5 / math.sqrt(math.prod(shape[:-1])))
    return values if name == NULL_PROMPT else ((name == "scale") + 0.02 * values).astype(dtype)

  return jax.tree_util.tree_map_with_path(lambda path, leaf: fill(str(path[-1].key), leaf.shape), abstract)


def _rounded(value: Any) -> Any:
  return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
