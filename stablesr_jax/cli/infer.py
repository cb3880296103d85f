"""The command line of `infer.py`."""

import contextlib
import functools
import pathlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from stablesr_jax.cli.common import BAD_INPUT, StandardOutput, parse, run, tell, warn
from stablesr_jax.cli.console import OUT_OF_MEMORY, Console
from stablesr_jax.cli.dry_run import tell_plan
from stablesr_jax.cli.infer_arguments import (
  Arguments,
  check,
  memory_of,
  namer,
  output_of,
  sampling_of,
  size_of,
  steps_of,
)
from stablesr_jax.cli.piped import is_piped, read_piped
from stablesr_jax.errors import UserError
from stablesr_jax.files import require_writable
from stablesr_jax.images import read_image, require_holds
from stablesr_jax.inference.abilities import require_able, require_parts
from stablesr_jax.inference.companions import find_companions
from stablesr_jax.inference.jobs import Summary, model_identity, prepare, run_jobs, settings, short_of_space
from stablesr_jax.inference.manifest import Results
from stablesr_jax.inference.plan import Found, Plan, describe, find_jobs, make_plan
from stablesr_jax.inference.processes import Outcome, Place, find_place, together
from stablesr_jax.inference.step_pictures import StepPictures
from stablesr_jax.interrupts import end_now, interrupt

if TYPE_CHECKING:
  from stablesr_jax.checkpoints.store import Manifest
  from stablesr_jax.config import SamplingConfig


def main(argv: Sequence[str] | None = None, prog: str = "infer.py") -> int:
  return run(prog, lambda: _main(parse(Arguments, argv, prog), prog), out_of_memory=OUT_OF_MEMORY)


def _main(arguments: Arguments, prog: str) -> int:
  check(arguments)
  place = find_place(arguments.processes, arguments.process)
  with _terminable():
    if arguments.output == "-":
      return _to_stdout(arguments, place, prog)
    return _to_files(arguments, pathlib.Path(arguments.output), place, prog)


def _to_stdout(arguments: Arguments, place: Place, prog: str) -> int:
  """Restores a picture, and writes nothing but its PNG to standard output."""
  if pathlib.Path(arguments.input).is_dir():
    raise UserError("--output -: takes a single picture, but the input is a folder")
  output = sys.stdout
  assert isinstance(output, StandardOutput)  # of `run`
  output.require_binary()
  if output.isatty() and not arguments.dry_run:
    raise UserError("--output -: standard output is a terminal; send it to a file or a program (... > restored.png)")
  with tempfile.TemporaryDirectory(prefix="stablesr-") as folder:
    target = pathlib.Path(folder, "result.png")
    code = _to_files(arguments, target, place, prog)
    if target.is_file():
      output.write_bytes(target.read_bytes())
  return code


def _to_files(arguments: Arguments, output: pathlib.Path, place: Place, prog: str) -> int:
  """Restores pictures into files; of several processes, this one's part."""
  found = _find(arguments, output)
  for error in found.unread:
    tell(prog, error)
  bad = bool(found.unread)
  if not arguments.dry_run:
    require_writable(output if found.recorded else output.parent)
  if place.processes > 1:
    print(f"{prog}: process {place.process} of {place.processes}: restores its own part of the input", file=sys.stderr)
  if not pathlib.Path(arguments.input).is_dir():  # the first one has it
    return 0 if place.process else _restore(arguments, found, place, prog)[0]
  if place.processes == 1 or arguments.dry_run:
    return _restore(arguments, found, place, prog)[0] or (BAD_INPUT if bad else 0)
  with together(output, place) as processes:
    code, outcome = _restore(arguments, found, place, prog)
    code = code or (BAD_INPUT if bad else 0)
    processes.finish(outcome)
    if place.process:
      return code
    others = processes.outcomes(lambda message: print(f"{prog}: {message}", file=sys.stderr))
    return _sum_up(code, [outcome, *others], prog)


def _find(arguments: Arguments, output: pathlib.Path) -> Found:
  """The pictures of the input. What comes through a pipe is read here, so that a bad picture is told at once."""
  written, source = output_of(arguments), pathlib.Path(arguments.input)
  if is_piped(arguments.input):
    found = read_piped(arguments.input, output, written)
  else:
    found = find_jobs(source, output, written, namer(arguments, written))
  return find_companions(found, source, pre_cleaned=arguments.pre_cleaned, reference=arguments.reference)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
  """SIGTERM in the block is as Ctrl-C: what is in work is dropped in good order."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, end_now)
    interrupt(number, frame)

  before = signal.signal(signal.SIGTERM, terminate)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _sum_up(code: int, outcomes: Sequence[Outcome], prog: str) -> int:
  """Tells what became of all processes' pictures, and returns the exit code for it, `code` if the others did well."""
  ended = [outcome for outcome in outcomes if not outcome.fault]
  restored, failed = sum(outcome.restored for outcome in ended), sum(outcome.failed for outcome in ended)
  which = f"{len(ended)} of {len(outcomes)} processes"
  print(f"{prog}: {which}: {restored} pictures restored, {failed} could not be", file=sys.stderr)
  faults = [f"process {number} {outcome.fault}" for number, outcome in enumerate(outcomes) if outcome.fault]
  if faults:
    print(f"{prog}: error: {', '.join(faults)}; run the same again for what is left", file=sys.stderr)
  return code or (BAD_INPUT if faults or failed else 0)


def _restore(arguments: Arguments, found: Found, place: Place, prog: str) -> tuple[int, Outcome]:
  """Restores pictures; the exit code, and how it went."""
  several = pathlib.Path(arguments.input).is_dir()
  if not several and found.jobs[0].content is None:
    # What is wrong with it, or its result's size, is told before a large model is loaded.
    size = read_image(found.jobs[0].source).rgb.shape[:2]
    for companion in found.jobs[0].companions.values():
      read_image(companion)
    require_holds(found.jobs[0].target, *size_of(arguments).of(size))

  from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest, read_pre_cleaner

  folder = arguments.model or EMBEDDED
  manifest = read_manifest(folder)
  sampling, steps = sampling_of(arguments, manifest.sampling), steps_of(arguments, found)
  require_parts(manifest)
  require_able(manifest.architecture, sampling)
  cleaner = None
  if arguments.pre_clean is not None:
    cleaner = model_identity(read_pre_cleaner(arguments.pre_clean), arguments.pre_clean)
  results = None
  if found.recorded:
    model, written = model_identity(manifest, folder), output_of(arguments)
    results = Results(
      settings(model, size_of(arguments), arguments.seed, sampling, arguments.precision, written, cleaner)
    )
  if not arguments.dry_run:
    prepare(found, place)
  plan = make_plan(found, results, arguments.existing, place)
  report = Console(prog, quiet=arguments.output == "-")
  for reason, count in plan.again.items() if several else ():
    print(f"{prog}: {count} restored again: {reason}", file=sys.stderr)
  for job, error in plan.refused:
    report.end(job, error)
  if arguments.dry_run:
    memory = functools.partial(_memory, arguments, manifest, sampling)
    tell_plan(plan, results, manifest, scale=size_of(arguments), sampling=sampling, memory=memory)
    summary = Summary((), ())
  elif plan.jobs:
    if space := short_of_space(plan.jobs, size_of(arguments)):
      warn(prog, space)
    summary = _run(arguments, plan, results, manifest, sampling, steps, report)
  else:
    if not plan.refused and place.processes == 1:
      print(f"{prog}: nothing to do (--existing redo restores again what is there)", file=sys.stderr)
    summary = Summary((), ())
  summary = summary.with_plan(found, plan)
  if several and not arguments.dry_run and place.processes == 1:
    print(f"{prog}: {summary}", file=sys.stderr)
  elif several and summary.left and not place.process:  # of several processes' pictures the first one tells at the end
    print(f"{prog}: left out: {describe(summary.left)}", file=sys.stderr)
  return report.exit_code, Outcome(len(summary.restored), len(summary.failed))


def _memory(
  arguments: Arguments, manifest: "Manifest", sampling: "SamplingConfig", pictures: Sequence[tuple[int, int]]
) -> float:
  """About the most bytes that restoring pictures of these heights and widths one by one takes of each device."""
  from stablesr_jax.inference import memory
  from stablesr_jax.inference.picture_sizes import PictureSizes
  from stablesr_jax.parallel import data_mesh, start_devices

  start_devices()
  config, size = manifest.architecture, size_of(arguments)
  assert config.autoencoder is not None
  sizes = [PictureSizes.of((*own, 3), size, sampling, config.autoencoder.downsampling) for own in pictures]
  return memory.of_run(config, arguments.precision, data_mesh(), sizes, **memory_of(arguments))


def _run(
  arguments: Arguments,
  plan: Plan,
  results: Results | None,
  manifest: "Manifest",
  sampling: "SamplingConfig",
  steps: StepPictures | None,
  report: Console,
) -> Summary:
  """Loads the model and restores what is planned."""
  from stablesr_jax.checkpoints.store import EMBEDDED
  from stablesr_jax.compilation import enable_cache
  from stablesr_jax.inference.pipeline import StableSR
  from stablesr_jax.inference.pre_clean import PreCleaner
  from stablesr_jax.parallel import start_devices

  try:
    start_devices()
    enable_cache(arguments.compile_cache, functools.partial(warn, report.prog))
    model = StableSR.load(
      arguments.model or EMBEDDED,
      manifest=manifest,
      precision=arguments.precision,
      **memory_of(arguments),
    )
    cleaner = arguments.pre_clean and PreCleaner.load(arguments.pre_clean, precision=arguments.precision)
    return run_jobs(
      model,
      plan.jobs,
      scale=size_of(arguments),
      seed=arguments.seed,
      sampling=sampling,
      results=results,
      existing=arguments.existing,
      output=output_of(arguments),
      group=None if arguments.group == "auto" else int(arguments.group),
      report=report,
      pre_cleaner=cleaner,
      steps=steps,
    )
  except KeyboardInterrupt as stop:
    if len(plan.jobs) == 1:
      raise
    done = f"after {report.restored} of {len(plan.jobs)} pictures"
    raise KeyboardInterrupt(f"{done}; the same command again goes on with the others") from stop


if __name__ == "__main__":
  sys.exit(main(prog="python -m stablesr_jax.cli.infer"))
