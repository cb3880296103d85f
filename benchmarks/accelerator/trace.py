"""The operations of a profile, by the time that they take."""

import dataclasses
import gzip
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Operation:
  """One kernel or operation by its name, milliseconds and calls for each call of what was traced."""

  name: str
  ms: float
  calls: float


def slowest(call: Callable[[], Any], repeats: int, output: pathlib.Path | None) -> tuple[list[Operation] | None, float]:
  """Traces `repeats` calls of what is compiled already.

  Args:
    output: Where the profile is put as trace.json.gz, for a viewer; None keeps none.

  Returns:
    The device's operations, the slowest first, or None if the profiler wrote nothing; and a call's milliseconds by the
    clock.
  """
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level, options.host_tracer_level = (
    0,
    1,
  )  # without the host's calls, so that all kernels are kept
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, profiler_options=options):
      began = time.perf_counter()
      for _ in range(repeats):
        last = call()
      jax.block_until_ready(last)
      wall = 1e3 * (time.perf_counter() - began) / repeats
    files = sorted(pathlib.Path(folder).rglob("*.trace.json.gz"))
    if not files:
      return None, wall
    written = files[-1].read_bytes()
  if output is not None:
    (output / "trace.json.gz").write_bytes(written)
  return operations(json.loads(gzip.decompress(written))["traceEvents"], repeats), wall


def operations(events: list[dict[str, Any]], repeats: int) -> list[Operation]:
  """The device's operations among a trace's events, the slowest first."""
  processes, threads = {}, {}
  for event in events:
    if event.get("ph") == "M" and event["name"] == "process_name":
      processes[event["pid"]] = event["args"]["name"]
    if event.get("ph") == "M" and event["name"] == "thread_name":
      threads[event["pid"], event["tid"]] = event["args"]["name"]
  spans = [event for event in events if event.get("ph") == "X"]

  def on_line(name: str) -> list[dict[str, Any]]:
    return [
      event
      for event in spans
      if "/device:" in processes.get(event["pid"], "")
      and threads.get((event["pid"], event["tid"]), "").startswith(name)
    ]

  # A GPU has its kernels by streams, a TPU its operations on one line; a CPU's are on its threads.
  chosen = on_line("Stream") or on_line("XLA Ops") or [event for event in spans if "hlo_op" in event.get("args", {})]
  total: dict[str, list[float]] = {}
  for event in chosen:
    entry = total.setdefault(event["name"][:120], [0.0, 0])
    entry[0] += event["dur"] / 1e3
    entry[1] += 1
  found = [Operation(name, ms / repeats, calls / repeats) for name, (ms, calls) in total.items()]
  return sorted(found, key=lambda operation: -operation.ms)
