"""The arguments of `infer.py`, and what they stand for."""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import tyro

from stablesr_jax.errors import UserError
from stablesr_jax.host_memory import parse_size
from stablesr_jax.images import Output
from stablesr_jax.inference.jobs import SEED
from stablesr_jax.inference.output_size import OutputSize
from stablesr_jax.inference.plan import Existing, Found
from stablesr_jax.inference.presets import Preset, with_preset
from stablesr_jax.inference.step_pictures import StepPictures
from stablesr_jax.settings import shorten

if TYPE_CHECKING:
  from stablesr_jax.config import SamplingConfig


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
  scale: Annotated[float | None, tyro.conf.arg(metavar="S", help_behavior_hint="(default: 4)")] = None
  """how much larger the sides become; or one of the following five, or --width and --height both"""
  width: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """width of results in pixels; proportions are kept"""
  height: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """height of results in pixels; proportions are kept"""
  longest_side: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """longer side of results in pixels"""
  shortest_side: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """shorter side of results in pixels"""
  megapixels: Annotated[float | None, tyro.conf.arg(metavar="N")] = None
  """area of results in millions of pixels"""
  preset: Preset | None = None
  """settings between speed and quality, in place of the model's own and behind those given here"""
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
  color_fix: Annotated[Literal["adain", "wavelet", "lab", "none"] | None, _own("adain|wavelet|lab|none")] = None
  """how colours are held to the input's"""
  color_fix_weight: Annotated[float | None, _own("W")] = None
  """how far they are, 0 (not at all) to 1"""
  tile_size: Annotated[int | None, _own("N")] = None
  """side of a diffusion tile in latent pixels; one is 8 pixels of the result, 4 with the model that ships"""
  tile_overlap: Annotated[int | None, _own("N")] = None
  """overlap of neighbouring tiles, in latent pixels"""
  tile_batch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """number of tiles in one call of the network; default: 1 on CPU, up to 32 on each accelerator"""
  autoencoder_tile: Annotated[str, tyro.conf.arg(metavar="auto|N")] = "auto"
  """side in pixels of the largest square that a device's autoencoder takes whole; auto: up to 1024, as memory allows"""
  max_memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
  """the most memory to use of each device, on a CPU of the machine's, such as 8G or 500M; default: what is free"""
  prompt: Annotated[str | None, _own("TEXT")] = None
  """text that describes the picture"""
  negative_prompt: Annotated[str | None, _own("TEXT")] = None
  """text that describes what it should not be; needs --guidance-scale above 1"""
  guidance_scale: Annotated[float | None, _own("S")] = None
  """strength of the prompts; 1 is no guidance, 7 the published script's with prompts"""
  pre_clean: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="MODEL")] = None
  """model folder of Real-ESRGAN, which cleans badly degraded pictures before they are restored"""
  pre_cleaned: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
  """pictures that were cleaned elsewhere, of the inputs' names and sizes, to take their places"""
  reference: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
  """pictures of the inputs' names, of any size, that guide the restoration"""
  reference_weight: Annotated[float | None, _own("W")] = None
  """how strongly they do, 0 to 0.5"""
  save_steps: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="FOLDER")] = None
  """where to write for each result the pictures that its steps took it for"""
  save_steps_every: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
  """of how many steps one is written; default: 1"""
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


def output_of(arguments: Arguments) -> Output:
  """How results are written."""
  a = arguments
  bits = "auto" if a.bits == "auto" else 16 if a.bits == "16" else 8
  return Output(a.format, bits, a.quality, metadata=not a.strip_metadata, record=not a.no_record, name=a.name)


def steps_of(arguments: Arguments, found: Found) -> StepPictures | None:
  """What writes pictures of the steps, if they are wanted."""
  if arguments.save_steps is None:
    return None
  folder, source = (pathlib.Path(os.path.realpath(path)) for path in (arguments.save_steps, arguments.input))
  if source == folder or source in folder.parents:
    raise UserError(f"--save-steps {arguments.save_steps}: is in the input; choose another folder")
  results = pathlib.Path(arguments.output) if found.recorded else found.jobs[0].target.parent
  every = 1 if arguments.save_steps_every is None else arguments.save_steps_every
  return StepPictures(arguments.save_steps, results, every)


def namer(arguments: Arguments, output: Output) -> Callable[[str, str], str]:
  """Gives results' names."""
  model = ""
  if "{model}" in arguments.name:
    from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest

    model = read_manifest(arguments.model or EMBEDDED).name
  return functools.partial(output.file_name, scale=str(size_of(arguments)), model=model)


class Memory(TypedDict):
  """What `StableSR.load` is told of sizes that take memory, by its names."""

  tile_batch: int | None
  autoencoder_tile: int | None
  max_memory: int | None


def memory_of(arguments: Arguments) -> Memory:
  tile, most = arguments.autoencoder_tile, arguments.max_memory
  return Memory(
    tile_batch=arguments.tile_batch,
    autoencoder_tile=None if tile == "auto" else int(tile),
    max_memory=None if most is None else parse_size(most, "max-memory"),
  )


def sampling_of(arguments: Arguments, defaults: "SamplingConfig") -> "SamplingConfig":
  """The model's sampling settings, with the preset's in their place and the command line's in that of both."""
  defaults = with_preset(defaults, arguments.preset) if arguments.preset else defaults
  size, overlap = arguments.tile_size, arguments.tile_overlap
  if size is not None and overlap is None and defaults.tile_overlap is not None and defaults.tile_overlap >= size:
    defaults = dataclasses.replace(defaults, tile_overlap=None)  # the model's own is for larger tiles
  given = {f.name: getattr(arguments, f.name, None) for f in dataclasses.fields(defaults)}
  return dataclasses.replace(defaults, **{name: value for name, value in given.items() if value is not None})


def size_of(arguments: Arguments) -> OutputSize:
  """The size of results.

  Raises:
    UserError: More than one is given, or one is out of bounds.
  """
  given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(OutputSize)}
  if all(value is None for value in given.values()):
    given["scale"] = 4.0
  return OutputSize(**given)


def check(arguments: Arguments) -> None:
  """Raises UserError for numbers that no model can work with, before any picture is read."""
  a = arguments
  size_of(a)
  for ok, message in (
    (a.tile_batch is None or 1 <= a.tile_batch <= 4096, f"tile-batch {a.tile_batch}: must be 1 to 4096"),
    (0 <= a.seed < 2**32, f"seed {a.seed}: must be 0 to {2**32 - 1}"),
    (bool(re.fullmatch("auto|0*[1-9][0-9]{0,8}", a.group)), f"group {shorten(a.group)}: must be auto or at least 1"),
    (a.pre_clean is None or a.pre_cleaned is None, "--pre-clean and --pre-cleaned: give one of them"),
    (a.save_steps_every is None or a.save_steps is not None, "--save-steps-every: is only for --save-steps"),
    (
      a.autoencoder_tile == "auto" or bool(re.fullmatch("0*(6[4-9]|[7-9][0-9]|[1-9][0-9]{2,8})", a.autoencoder_tile)),
      f"autoencoder-tile {shorten(a.autoencoder_tile)}: must be auto or at least 64 pixels",
    ),
  ):
    if not ok:
      raise UserError(message)
  memory_of(a)
  for name, value in dataclasses.asdict(a).items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{name.replace('_', '-')} {value}: must be a finite number")
