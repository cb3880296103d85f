"""The command line of `infer.py`."""

import dataclasses
import functools
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tqdm import tqdm

from stablesr_jax.cli.common import BAD_INPUT, parse, run, tell, warn
from stablesr_jax.errors import UserError
from stablesr_jax.files import require_writable
from stablesr_jax.images import Output, passed_over, read_image, require_holds
from stablesr_jax.inference.jobs import SEED, Job, Report, plan_jobs, run_jobs
from stablesr_jax.inference.processes import Outcome, find_place, together

if TYPE_CHECKING:
  from stablesr_jax.config import SamplingConfig

_OUT_OF_MEMORY = "try a smaller --tile-batch or --autoencoder-tile"


def _own(metavar: str):
  """A setting whose default the model brings along."""
  return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the model's)")


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Enlarges and restores photographs. Settings that are not given are the model's own.

      {prog} --input photo.jpg --output restored.png
      {prog} --input photo.jpg --output restored.png --model models/stablesr_512

  A folder is restored with all the folders in it, into the same tree under --output; pictures that are already
  there are left alone, so a run that was stopped goes on where it was.
  """

  input: Annotated[pathlib.Path, tyro.conf.arg(metavar="FILE|FOLDER")]
  """the picture to restore, or a folder of pictures"""
  output: Annotated[pathlib.Path, tyro.conf.arg(metavar="FILE|FOLDER")]
  """the file to write (.png, .jpg, .webp, .tif, .avif), or a folder, where pictures become .png"""
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
  overwrite: bool = False
  """restore pictures of a folder again whose result is there"""
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
  output = _output(arguments)
  jobs = plan_jobs(arguments.input, arguments.output, arguments.overwrite, place, output, _namer(arguments, output))
  if arguments.input.is_dir() and place.process == 0 and (others := passed_over(arguments.input)):
    print(f"{prog}: {arguments.input}: {others}", file=sys.stderr)
  if place.processes > 1:
    print(f"{prog}: process {place.process} of {place.processes}: restores its own part of the input", file=sys.stderr)
  if arguments.input.is_file():  # the first one has it
    return 0 if place.process else _restore(arguments, jobs, prog)[0]
  if place.processes == 1:
    return _restore(arguments, jobs, prog)[0]
  with together(arguments.output, place) as processes:
    code, outcome = _restore(arguments, jobs, prog)
    processes.finish(outcome)
    if place.process:
      return code
    others = processes.outcomes(lambda message: print(f"{prog}: {message}", file=sys.stderr))
    return _sum_up(code, [outcome, *others], prog)


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


def _restore(arguments: Arguments, jobs: Sequence[Job], prog: str) -> tuple[int, Outcome]:
  """Restores pictures; the exit code, and how it went."""
  if not jobs:
    print("nothing to do: every picture is restored already (--overwrite to do it again)")
    return 0, Outcome(0, 0)
  if len(jobs) == 1 and arguments.input.is_file():
    height, width = read_image(jobs[0].source).rgb.shape[:2]  # a bad file is told before a large model is loaded
    require_holds(jobs[0].target, round(height * arguments.scale), round(width * arguments.scale))
  require_writable(jobs[0].target.parent)

  from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest
  from stablesr_jax.compilation import enable_cache
  from stablesr_jax.inference.pipeline import StableSR
  from stablesr_jax.parallel import start_devices

  folder = arguments.model or EMBEDDED
  manifest = read_manifest(folder)
  sampling = _sampling(arguments, manifest.sampling)
  start_devices()
  enable_cache(arguments.compile_cache, functools.partial(warn, prog))
  model = StableSR.load(
    folder,
    manifest=manifest,
    precision=arguments.precision,
    tile_batch=arguments.tile_batch,
    autoencoder_tile=arguments.autoencoder_tile,
  )
  report = _Console(prog)
  summary = run_jobs(
    model,
    jobs,
    scale=arguments.scale,
    seed=arguments.seed,
    sampling=sampling,
    output=_output(arguments),
    group=None if arguments.group == "auto" else int(arguments.group),
    report=report,
  )
  if summary.failed and len(jobs) > 1:
    print(f"{prog}: error: {len(summary.failed)} of {len(jobs)} pictures could not be restored", file=sys.stderr)
  return report.exit_code, Outcome(len(summary.restored), len(summary.failed))


class _Console(Report):
  """A bar for pictures that are restored together, the results' names on standard output, errors on standard error.

  Attributes:
    exit_code: The gravest so far: a bug's before that of what a person can mend.
  """

  def __init__(self, prog: str):
    self.exit_code = 0
    self._prog = prog
    self._bar: tqdm | None = None
    self._label = ""

  def begin(self, jobs: Sequence[Job], number: int, count: int) -> None:
    last = f"-{number + len(jobs) - 1}" if len(jobs) > 1 else ""
    self._label = f"[{number}{last}/{count}] {jobs[0].source.name}{' ...' if last else ''}"

  def step(self, done: int, steps: int) -> None:
    if self._bar is None:
      self._bar = tqdm(total=steps, desc=self._label, unit="step", disable=None)
    self._bar.update(done - self._bar.n)
    if done == steps:
      self._close()

  def note(self, job: Job, note: str) -> None:
    with tqdm.external_write_mode():
      warn(self._prog, f"{job.source}: {note}")

  def end(self, job: Job, error: Exception | None) -> None:
    with tqdm.external_write_mode():  # a bar may be on the screen
      if error is None:
        print(job.target, flush=True)
        return
      self._tell(job, error)

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def _tell(self, job: Job, error: Exception) -> None:
    self._close()  # it may have been this picture's
    code = tell(self._prog, error, subject=str(job.source), out_of_memory=_OUT_OF_MEMORY)
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
  for ok, message in (
    (0 < a.scale < math.inf, f"scale {a.scale}: must be a positive number"),
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
