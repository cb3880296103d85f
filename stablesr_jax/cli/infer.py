"""The command line of `infer.py`."""

import dataclasses
import math
import pathlib
import sys
import zlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import tyro

from stablesr_jax.cli.common import BAD_INPUT, parse, run
from stablesr_jax.errors import UserError
from stablesr_jax.image_io import WRITABLE_SUFFIXES, Picture, list_images, read_image, write_image

PROG = "infer.py"


def _own(metavar: str):
  """A setting whose default the model brings along."""
  return tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: the model's)")


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Enlarges and restores photographs. Settings that are not given are the model's own.

      python infer.py --input photo.jpg --output restored.png
      python infer.py --input photo.jpg --output restored.png --model models/stablesr_512

  A folder is restored with all the folders in it, into the same tree under --output; pictures that are already
  there are left alone, so a run that was stopped goes on where it was.
  """

  input: Annotated[pathlib.Path, tyro.conf.arg(metavar="FILE|FOLDER")]
  """a picture, or a folder of pictures"""
  output: Annotated[pathlib.Path, tyro.conf.arg(metavar="FILE|FOLDER")]
  """a file (.png, .jpg, .webp, .tif, .avif), or a folder, where pictures become .png"""
  model: Annotated[
    pathlib.Path | None,
    tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: the small one that ships with the package)"),
  ] = None
  """a model folder made by convert_weights.py or train.py"""
  scale: float = 4.0
  """how much larger the sides become"""
  sampler: Annotated[Literal["ddpm", "ddim"] | None, _own("ddpm|ddim")] = None
  """ddpm (the paper's) or ddim, for few steps"""
  steps: Annotated[int | None, _own("N")] = None
  """denoising steps: 200 in the paper, 4 for Turbo weights"""
  start_step: Annotated[int | None, _own("T")] = None
  """timestep of the noised input that sampling starts from, 1 to 999 (the paper's); lower keeps more of the input"""
  eta: Annotated[float | None, _own("ETA")] = None
  """DDIM's noise, 0 (deterministic) to 1"""
  seed: int = 42
  """of the noise; a picture's result depends on it and the picture's file name alone"""
  fidelity_weight: Annotated[float | None, _own("W")] = None
  """0 is most generative, 1 keeps closest to the input (CFW's w)"""
  color_fix: Annotated[Literal["adain", "wavelet", "none"] | None, _own("adain|wavelet|none")] = None
  """how colours are held to the input's"""
  tile_size: Annotated[int | None, _own("N")] = None
  """of a diffusion tile in latent pixels; one is 8 pixels of the result, 4 with the model that ships"""
  tile_overlap: Annotated[int | None, _own("N")] = None
  """of neighbouring tiles, in latent pixels"""
  tile_batch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """tiles in one call of the network; default: 1 on CPU, up to 8 on each accelerator"""
  autoencoder_tile: int = 1024
  """largest side in pixels that the autoencoder takes whole; less needs less memory"""
  prompt: Annotated[str | None, _own("TEXT")] = None
  """text that describes the picture"""
  negative_prompt: Annotated[str | None, _own("TEXT")] = None
  """text that describes what it should not be; needs --guidance-scale above 1"""
  guidance_scale: Annotated[float | None, _own("S")] = None
  """strength of the prompts; 1 is no guidance, 7 the published script's with prompts"""
  precision: Literal["auto", "float32", "bfloat16"] = "auto"
  """of the computation; auto: float32 on CPU, bfloat16 on GPU and TPU"""
  overwrite: bool = False
  """restore pictures of a folder again whose result is there"""
  compile_cache: Annotated[str, tyro.conf.arg(metavar="auto|off|FOLDER")] = "auto"
  """where compiled programs are kept from run to run; auto: the user's cache directory"""


def main(argv: Sequence[str] | None = None) -> int:
  arguments = parse(Arguments, argv, PROG)
  return run(PROG, lambda: _main(arguments))


@dataclasses.dataclass(frozen=True)
class Job:
  """One picture to restore; `name` is what its noise is drawn from."""

  source: pathlib.Path
  target: pathlib.Path
  name: str


def _main(arguments: Arguments) -> int:
  _check(arguments)
  jobs = plan_jobs(arguments.input, arguments.output, arguments.overwrite)
  if not jobs:
    print("nothing to do: every picture is restored already (--overwrite to do it again)")
    return 0
  if len(jobs) == 1 and arguments.input.is_file():
    read_image(jobs[0].source)  # a bad file is told before a large model is loaded

  import jax

  from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest
  from stablesr_jax.compilation import enable_cache
  from stablesr_jax.inference.pipeline import StableSR

  folder = arguments.model or EMBEDDED
  sampling = _sampling(arguments, read_manifest(folder).sampling)
  enable_cache(arguments.compile_cache)
  model = StableSR.load(
    folder,
    precision=arguments.precision,
    tile_batch=arguments.tile_batch,
    autoencoder_tile=arguments.autoencoder_tile,
  )
  model.check(sampling)
  failed = 0
  for number, job in enumerate(jobs, 1):
    try:
      job.target.parent.mkdir(parents=True, exist_ok=True)  # first: better told now than after the work
      restored = restore(model, job, arguments.scale, arguments.seed, sampling, f"[{number}/{len(jobs)}] ")
      write_image(job.target, restored)
      print(job.target)
    except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
      failed += 1
      print(f"{PROG}: error: {job.source}: {_reason(error, job)}", file=sys.stderr)
  if failed and len(jobs) > 1:
    print(f"{PROG}: error: {failed} of {len(jobs)} pictures could not be restored", file=sys.stderr)
  return BAD_INPUT if failed else 0


def plan_jobs(source: pathlib.Path, target: pathlib.Path, overwrite: bool) -> list[Job]:
  """What is to be restored, and into which files.

  Raises:
    UserError: there is no input, a folder has no pictures, or two would become one file.
  """
  if not source.exists():
    raise UserError(f"{source}: no such file or folder")
  if source.is_file():
    if target.is_dir() or target.suffix.lower() not in WRITABLE_SUFFIXES:
      if target.suffix and not target.is_dir():
        raise UserError(f"{target}: cannot write {target.suffix} (use {', '.join(WRITABLE_SUFFIXES)}, or a folder)")
      target = target / f"{source.stem}.png"
    if target.exists() and target.samefile(source):
      raise UserError(f"{target}: is the input; choose another output")
    return [Job(source, target, source.name)]
  if target.is_file():
    raise UserError(f"{target}: is a file, but the input is a folder")
  images = list_images(source)
  if source.resolve() in target.resolve().parents:  # earlier results are no inputs
    images = [path for path in images if target.resolve() not in path.resolve().parents]
  if not images:
    raise UserError(f"{source}: has no pictures")
  if source.resolve() == target.resolve():
    raise UserError(f"{target}: is the input; choose another output")
  inputs = {path.resolve() for path in images}
  jobs, taken = [], {}
  for path in images:
    relative = path.relative_to(source)
    result = target / relative.with_suffix(".png")
    if result in taken:  # a.jpg beside a.png
      result = target / relative.with_name(f"{relative.name}.png")
    if result.resolve() in inputs:
      raise UserError(f"{target}: results would replace the inputs; choose another output")
    taken[result] = path
    jobs.append(Job(path, result, path.name))
  return [job for job in jobs if overwrite or not job.target.exists()]


def restore(model: Any, job: Job, scale: float, seed: int, sampling: Any, label: str) -> Picture:
  """Reads, restores and returns one picture, its profile, EXIF and alpha kept."""
  import jax
  import numpy as np
  from PIL import Image
  from tqdm import tqdm

  picture = read_image(job.source)
  key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(job.name.encode())))
  with tqdm(total=sampling.steps, desc=label + job.source.name, unit="step", disable=None) as bar:
    [rgb] = model.upscale_batch(
      [picture.rgb], scale=scale, keys=[key], sampling=sampling, progress=lambda done, _: bar.update(done - bar.n)
    )
  alpha = picture.alpha
  if alpha is not None:
    alpha = np.asarray(Image.fromarray(alpha).resize(rgb.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
  return dataclasses.replace(picture, rgb=rgb, alpha=alpha)


def _sampling(arguments: Arguments, defaults: Any) -> Any:
  """The model's sampling settings with those of the command line in their place."""
  given = {f.name: getattr(arguments, f.name, None) for f in dataclasses.fields(defaults)}
  return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})


def _check(arguments: Arguments) -> None:
  """Raises UserError for numbers that no model can work with, before any picture is read."""
  a = arguments
  for ok, message in (
    (0 < a.scale < math.inf, f"scale {a.scale}: must be a positive number"),
    (0 <= a.seed < 2**32, f"seed {a.seed}: must be 0 to {2**32 - 1}"),
    (a.tile_batch is None or a.tile_batch >= 1, f"tile-batch {a.tile_batch}: must be at least 1"),
    (a.autoencoder_tile >= 64, f"autoencoder-tile {a.autoencoder_tile}: must be at least 64 pixels"),
  ):
    if not ok:
      raise UserError(message)


def _reason(error: Exception, job: Job) -> str:
  """What went wrong with a picture, in one line."""
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return "out of memory; try a smaller --tile-batch or --autoencoder-tile"
  return " ".join(str(error).removeprefix(f"{job.source}: ").split())
