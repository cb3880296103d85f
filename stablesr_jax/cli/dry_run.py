"""Tells what `infer.py` would do."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stablesr_jax.cli.common import shown
from stablesr_jax.errors import UserError
from stablesr_jax.host_memory import format_size
from stablesr_jax.inference.jobs import job_size
from stablesr_jax.inference.manifest import Results
from stablesr_jax.inference.output_size import OutputSize
from stablesr_jax.inference.plan import Plan

if TYPE_CHECKING:
  from stablesr_jax.checkpoints.store import Manifest
  from stablesr_jax.config import SamplingConfig


def tell_plan(
  plan: Plan,
  results: Results | None,
  manifest: "Manifest",
  *,
  scale: OutputSize,
  sampling: "SamplingConfig",
  memory: Callable[[Sequence[tuple[int, int]]], float],
) -> None:
  """Tells on standard output which picture would become which file, of which size, and of how many tiles; and about how
  much time and memory they take.

  Args:
    memory: Gives the bytes for pictures of these heights and widths.
  """
  from stablesr_jax.inference.picture_sizes import count_tiles

  tiles = pixels = 0
  known: list[tuple[int, int]] = []
  for job in plan.jobs:
    line, size = f"{shown(job.source)} -> {shown(job.target)}", job_size(job)
    if size is None:
      print(f"{line}  size unknown")
      continue
    try:
      height, width = scale.of(size)
      own = count_tiles(manifest.architecture, size, scale=scale, sampling=sampling)
    except UserError as error:
      print(f"{line}  {error}")
      continue
    known.append(size)
    tiles, pixels = tiles + own, pixels + height * width
    print(f"{line}  {width}x{height}, {own} tile{'s' if own > 1 else ''}")
  print(f"{len(plan.jobs)} to restore, {plan.current} as before: {pixels / 1e6:.1f} megapixels, {tiles} tiles", end="")
  print(f", about {format_size(memory(known))} of memory" if known else "", end="")
  seconds = results and results.seconds_of_a_tile({job.target.parent for job in plan.jobs})
  print(f", about {_duration(seconds * tiles)} at {seconds:.2g} s a tile as measured here" if seconds else "")


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
