"""The command line of `infer.py`."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tqdm import tqdm

from stablesr_jax.cli.common import BAD_INPUT, parse, run, shown, tell, warn
from stablesr_jax.errors import UserError
from stablesr_jax.files import require_writable
from stablesr_jax.images import WRITABLE_SUFFIXES, Output, decode_image, read_image, require_holds
from stablesr_jax.inference.jobs import (
  SEED,
  Report,
  Summary,
  job_size,
  model_identity,
  prepare,
  require_sensible,
  run_jobs,
  settings,
  short_of_space,
)
from stablesr_jax.inference.manifest import Results
from stablesr_jax.inference.plan import Existing, Found, Job, Plan, describe, find_jobs, make_plan
from stablesr_jax.inference.processes import Outcome, Place, find_place, together
from stablesr_jax.interrupts import end_now, interrupt

if TYPE_CHECKING:
  from stablesr_jax.checkpoints.store import Manifest
  from stablesr_jax.config import SamplingConfig

# Where the system shows the files that the program was started with, <(...) among them.
_OPEN_FILES = ("/dev", "/dev/fd", "/proc/self/fd")
_OUT_OF_MEMORY = "try a smaller --tile-batch or --autoencoder-tile"


def _own(metavar: str):
  """A setting whose default the model brings along."""
  return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the model's)")


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Enlarges and restores photographs. Settings that are not given are the model's own.

      {prog} --input photo.jpg --output restored.png
      {prog} --input photo.jpg --output restored.png --model models/stablesr_512

  A folder is restored with all the folders in it, into the same tree under --output. What is there and as it is
  wanted is left alone, so a run that was stopped goes on where it was.
  """

  input: Annotated[str, tyro.conf.arg(metavar="FILE|FOLDER|-")]
  """the picture to restore, or a folder of pictures; - reads a picture from standard input"""
  output: Annotated[str, tyro.conf.arg(metavar="FILE|FOLDER|-")]
  """the file to write (.png, .jpg, .webp, .tif, .avif), or a folder, where pictures become .png; - writes a PNG to
  standard output"""
  model: Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: the small one that ships with the package)"),
  ] = None
  """the model folder, made by convert_weights.py or train.py"""
  scale: float = 4.0
  """how much larger the sides become"""
  sampler: Annotated[Literal["ddpm", "ddim"] | None, _own("ddpm|ddim")] = None
  """the sampler: ddpm (the paper's) or ddim, for few steps"""
  steps: Annotated[int | None, _own("N")] = None
  """number of denoising steps: 200 in the paper, 4 for Turbo weights, 1 for models trained to need no more"""
  start_step: Annotated[int | None, _own("T")] = None
  """timestep of the noised input that sampling starts from, 1 to 999 (the paper's); lower keeps more of the input"""
  start_noise: Annotated[float | None, _own("S")] = None
  """factor of the noise in that input: 1 is the paper's, 0 starts from the input itself"""
  eta: Annotated[float | None, _own("ETA")] = None
  """amount of noise in DDIM's steps, 0 (deterministic) to 1"""
  seed: int = SEED
  """seed of the noise; a picture's result depends on it and the picture's file name alone"""
  fidelity_weight: Annotated[float | None, _own("W")] = None
  """CFW's w: 0 is most generative, 1 keeps closest to the input"""
  color_fix: Annotated[Literal["adain", "wavelet", "none"] | None, _own("adain|wavelet|none")] = None
  """how colours are held to the input's"""
  tile_size: Annotated[int | None, _own("N")] = None
  """side of a diffusion tile in latent pixels; one is 8 pixels of the result, 4 with the model that ships"""
  tile_overlap: Annotated[int | None, _own("N")] = None
  """overlap of neighbouring tiles, in latent pixels"""
  tile_batch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """number of tiles in one call of the network; default: 1 on CPU, up to 32 on each accelerator"""
  autoencoder_tile: int = 1024
  """side in pixels of the largest square that a device's autoencoder takes whole; less needs less memory"""
  prompt: Annotated[str | None, _own("TEXT")] = None
  """text that describes the picture"""
  negative_prompt: Annotated[str | None, _own("TEXT")] = None
  """text that describes what it should not be; needs --guidance-scale above 1"""
  guidance_scale: Annotated[float | None, _own("S")] = None
  """strength of the prompts; 1 is no guidance, 7 the published script's with prompts"""
  precision: Literal["auto", "float32", "bfloat16"] = "auto"
  """dtype of the computation, float32 with all its bits everywhere; auto: float32 on CPU, bfloat16 on GPU and TPU"""
  group: Annotated[str, tyro.conf.arg(metavar="auto|N")] = "auto"
  """number of a folder's pictures that are restored together; auto: as many as fill the devices, on a CPU one"""
  format: Annotated[Literal["png", "jpg", "webp", "tif", "avif"] | None, tyro.conf.arg(metavar="FORMAT")] = None
  """format of a folder's results: png (the default), jpg, webp, tif or avif; of a file, its suffix says it"""
  bits: Literal["auto", "8", "16"] = "auto"
  """bits of each channel; 16 in PNG and TIFF; auto: 16 if the input has them and the format can"""
  quality: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """quality of JPEG, WebP and AVIF, 1 to 100; default: 95, of AVIF 90"""
  name: Annotated[str, tyro.conf.arg(metavar="PATTERN")] = "{stem}"
  """pattern of results' names, of {stem}, {name}, {scale} and {model}"""
  strip_metadata: bool = False
  """leave out EXIF, XMP, density and the record of the settings; the colour profile stays"""
  no_record: bool = False
  """do not write the settings used into the result"""
  existing: Existing = "update"
  """results that are there: update restores those again whose input or settings differ and replaces no file of
  somebody else's, skip leaves all, redo restores and replaces all, error stops unless all are as wanted"""
  dry_run: bool = False
  """tell what would be done, and do nothing"""
  processes: int | None = None
  """number of processes that restore a folder together; Slurm, Open MPI and TPU pods tell it"""
  process: int | None = None
  """which of them this one is, from 0"""
  compile_cache: Annotated[str, tyro.conf.arg(metavar="auto|off|FOLDER")] = "auto"
  """where compiled programs are kept from run to run; auto: the user's cache directory"""


def main(argv: Sequence[str] | None = None, prog: str = "infer.py") -> int:
  return run(prog, lambda: _main(parse(Arguments, argv, prog), prog), out_of_memory=_OUT_OF_MEMORY)


def _main(arguments: Arguments, prog: str) -> int:
  _check(arguments)
  place = find_place(arguments.processes, arguments.process)
  with _terminable():
    if arguments.output == "-":
      return _to_stdout(arguments, place, prog)
    return _to_files(arguments, pathlib.Path(arguments.output), place, prog)


def _to_stdout(arguments: Arguments, place: Place, prog: str) -> int:
  """Restores a picture, and writes nothing but its PNG to standard output."""
  if pathlib.Path(arguments.input).is_dir():
    raise UserError("--output -: takes a single picture, but the input is a folder")
  if sys.stdout.isatty() and not arguments.dry_run:
    raise UserError("--output -: standard output is a terminal; send it to a file or a program (... > restored.png)")
  with tempfile.TemporaryDirectory(prefix="stablesr-") as folder:
    target = pathlib.Path(folder, "result.png")
    code = _to_files(arguments, target, place, prog)
    if target.is_file():
      with target.open("rb") as file:
        shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
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
  given = arguments.input
  source, written = pathlib.Path(given), _output(arguments)
  if given != "-" and not _is_pipe(source):
    return find_jobs(source, output, written, _namer(arguments, written))
  name = "standard input" if given == "-" else given
  if given == "-" and sys.stdin.isatty():
    raise UserError("--input -: standard input is a terminal; send a picture to it (... < photo.jpg)")
  if given != "-" and str(source.parent) not in _OPEN_FILES:
    raise UserError(f"{given}: is neither a regular file nor a folder, but a pipe (--input - < {given} reads it)")
  if output.is_dir() or output.suffix.lower() not in WRITABLE_SUFFIXES:
    raise UserError(f"{output}: {name} has no file name to call a result by; give a file (.png, .jpg, ...) or -")
  written.require_suits(output)
  content = sys.stdin.buffer.read() if given == "-" else source.read_bytes()
  decode_image(content, name)
  return Found((Job(pathlib.Path(name), output, name, content),), recorded=False)


def _is_pipe(path: pathlib.Path) -> bool:
  try:
    kind = path.stat().st_mode
  except OSError:
    return False
  return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)


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
    from stablesr_jax.inference.pipeline import scaled_size

    # What is wrong with it, or its result's size, is told before a large model is loaded.
    size = read_image(found.jobs[0].source).rgb.shape[:2]
    require_holds(found.jobs[0].target, *scaled_size(size, arguments.scale))

  from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest

  folder = arguments.model or EMBEDDED
  manifest = read_manifest(folder)
  sampling = _sampling(arguments, manifest.sampling)
  results = None
  if found.recorded:
    model = model_identity(manifest, folder)
    results = Results(
      settings(model, arguments.scale, arguments.seed, sampling, arguments.precision, _output(arguments))
    )
  if not arguments.dry_run:
    prepare(found, place)
  plan = make_plan(found, results, arguments.existing, place)
  report = _Console(prog, quiet=arguments.output == "-")
  for reason, count in plan.again.items() if several else ():
    print(f"{prog}: {count} restored again: {reason}", file=sys.stderr)
  for job, error in plan.refused:
    report.end(job, error)
  if arguments.dry_run:
    _tell_plan(arguments, plan, results, manifest, sampling)
    summary = Summary((), ())
  elif plan.jobs:
    if space := short_of_space(plan.jobs, arguments.scale):
      warn(prog, space)
    summary = _run(arguments, plan, results, manifest, sampling, report)
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


def _run(
  arguments: Arguments,
  plan: Plan,
  results: Results | None,
  manifest: "Manifest",
  sampling: "SamplingConfig",
  report: "_Console",
) -> Summary:
  """Loads the model and restores what is planned."""
  from stablesr_jax.checkpoints.store import EMBEDDED
  from stablesr_jax.compilation import enable_cache
  from stablesr_jax.inference.pipeline import StableSR
  from stablesr_jax.parallel import start_devices

  try:
    start_devices()
    enable_cache(arguments.compile_cache, functools.partial(warn, report.prog))
    model = StableSR.load(
      arguments.model or EMBEDDED,
      manifest=manifest,
      precision=arguments.precision,
      tile_batch=arguments.tile_batch,
      autoencoder_tile=arguments.autoencoder_tile,
    )
    return run_jobs(
      model,
      plan.jobs,
      scale=arguments.scale,
      seed=arguments.seed,
      sampling=sampling,
      results=results,
      existing=arguments.existing,
      output=_output(arguments),
      group=None if arguments.group == "auto" else int(arguments.group),
      report=report,
    )
  except KeyboardInterrupt as stop:
    if len(plan.jobs) == 1:
      raise
    done = f"after {report.restored} of {len(plan.jobs)} pictures"
    raise KeyboardInterrupt(f"{done}; the same command again goes on with the others") from stop


def _tell_plan(
  arguments: Arguments, plan: Plan, results: Results | None, manifest: "Manifest", sampling: "SamplingConfig"
) -> None:
  """Tells on standard output which picture would become which file, of which size, and of how many tiles."""
  from stablesr_jax.inference.pipeline import count_tiles, scaled_size

  tiles = pixels = 0
  for job in plan.jobs:
    line, size = f"{shown(job.source)} -> {shown(job.target)}", job_size(job)
    if size is None:
      print(f"{line}  size unknown")
      continue
    try:
      height, width = scaled_size(size, arguments.scale)
      own = count_tiles(manifest.architecture, size, scale=arguments.scale, sampling=sampling)
    except UserError as error:
      print(f"{line}  {error}")
      continue
    tiles, pixels = tiles + own, pixels + height * width
    print(f"{line}  {width}x{height}, {own} tile{'s' if own > 1 else ''}")
  print(f"{len(plan.jobs)} to restore, {plan.current} as before: {pixels / 1e6:.1f} megapixels, {tiles} tiles", end="")
  seconds = results and results.seconds_of_a_tile({job.target.parent for job in plan.jobs})
  print(f", about {_duration(seconds * tiles)} at {seconds:.2g} s a tile as measured here" if seconds else "")


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


class _Console(Report):
  """A bar for pictures that are restored together, the results' names on standard output, errors on standard error.

  Attributes:
    exit_code: The gravest so far: a bug's before that of what a person can mend.
    restored: The number of pictures that are written.
  """

  def __init__(self, prog: str, quiet: bool = False):
    self.exit_code = self.restored = 0
    self.prog = prog
    self._quiet = quiet
    self._bar: tqdm | None = None
    self._label = ""

  def begin(self, jobs: Sequence[Job], number: int, count: int) -> None:
    last = f"-{number + len(jobs) - 1}" if len(jobs) > 1 else ""
    self._label = f"[{number}{last}/{count}] {shown(jobs[0].source.name)}{' ...' if last else ''}"

  def step(self, done: int, steps: int) -> None:
    if self._bar is None:
      self._bar = tqdm(total=steps, desc=self._label, unit="step", disable=None)
    self._bar.update(done - self._bar.n)
    if done == steps:
      self._close()

  def note(self, job: Job, note: str) -> None:
    with tqdm.external_write_mode():
      warn(self.prog, f"{shown(job.source)}: {note}")

  def end(self, job: Job, error: Exception | None) -> None:
    with tqdm.external_write_mode():  # a bar may be on the screen
      if error is None:
        self.restored += 1
        if not self._quiet:
          print(shown(job.target), flush=True)
        return
      self._tell(job, error)

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def _tell(self, job: Job, error: Exception) -> None:
    self._close()  # it may have been this picture's
    code = tell(self.prog, error, subject=str(job.source), out_of_memory=_OUT_OF_MEMORY)
    self.exit_code = min(code, self.exit_code or code)


def _output(arguments: Arguments) -> Output:
  """How results are written."""
  a = arguments
  bits = "auto" if a.bits == "auto" else 16 if a.bits == "16" else 8
  return Output(a.format, bits, a.quality, metadata=not a.strip_metadata, record=not a.no_record, name=a.name)


def _namer(arguments: Arguments, output: Output) -> Callable[[str, str], str]:
  """Gives results' names."""
  model = ""
  if "{model}" in arguments.name:
    from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest

    model = read_manifest(arguments.model or EMBEDDED).name
  return functools.partial(output.file_name, scale=arguments.scale, model=model)


def _sampling(arguments: Arguments, defaults: "SamplingConfig") -> "SamplingConfig":
  """The model's sampling settings with those of the command line in their place."""
  size, overlap = arguments.tile_size, arguments.tile_overlap
  if size is not None and overlap is None and defaults.tile_overlap is not None and defaults.tile_overlap >= size:
    defaults = dataclasses.replace(defaults, tile_overlap=None)  # the model's own is for larger tiles
  given = {f.name: getattr(arguments, f.name, None) for f in dataclasses.fields(defaults)}
  return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})


def _check(arguments: Arguments) -> None:
  """Raises UserError for numbers that no model can work with, before any picture is read."""
  a = arguments
  require_sensible(a.scale, None)
  for ok, message in (
    (0 <= a.seed < 2**32, f"seed {a.seed}: must be 0 to {2**32 - 1}"),
    (a.tile_batch is None or a.tile_batch >= 1, f"tile-batch {a.tile_batch}: must be at least 1"),
    (a.group == "auto" or (a.group.isdecimal() and int(a.group) >= 1), f"group {a.group}: must be auto or at least 1"),
    (a.autoencoder_tile >= 64, f"autoencoder-tile {a.autoencoder_tile}: must be at least 64 pixels"),
  ):
    if not ok:
      raise UserError(message)
  for name, value in dataclasses.asdict(a).items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{name.replace('_', '-')} {value}: must be a finite number")


if __name__ == "__main__":
  sys.exit(main(prog="python -m stablesr_jax.cli.infer"))
