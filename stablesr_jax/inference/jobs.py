"""Restores picture files: one, or all in a folder and its folders.

What takes long to import is imported when the first picture is restored: wrong paths are told at once.
"""

import dataclasses
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stablesr_jax.errors import UserError
from stablesr_jax.files import make_folder
from stablesr_jax.image_io import WRITABLE_SUFFIXES, Picture, list_images, read_image, require_holds, write_image

if TYPE_CHECKING:
  from stablesr_jax.config import SamplingConfig
  from stablesr_jax.inference.pipeline import StableSR

SEED = 42


@dataclasses.dataclass(frozen=True)
class Job:
  """One picture to restore.

  Attributes:
    source: The file to read.
    target: The file to write; its folder is made if need be.
    name: What the picture's noise is drawn from, beside the seed: the file's name without its folder.
  """

  source: pathlib.Path
  target: pathlib.Path
  name: str


class Report:
  """What is told while pictures are restored. These methods do nothing; a subclass overrides those that it wants."""

  def begin(self, job: Job, number: int, count: int) -> None:
    """Called before a picture is read, the `number`-th (from 1) of `count`."""

  def step(self, job: Job, done: int, steps: int) -> None:
    """Called when a picture is read, with `done` 0, and after each of its denoising steps."""

  def end(self, job: Job, error: Exception | None) -> None:
    """Called when a picture is written, or with the error that kept it from that."""


@dataclasses.dataclass(frozen=True)
class Summary:
  """What became of the pictures.

  Attributes:
    restored: Those that were restored and written.
    failed: Those that were not, and why: `UserError` and `OSError` for a damaged file or a full disk, anything else
      for a bug.
  """

  restored: tuple[Job, ...]
  failed: tuple[tuple[Job, Exception], ...]


def restore_folder(
  model: "StableSR",
  source: str | os.PathLike,
  target: str | os.PathLike,
  *,
  scale: float = 4.0,
  seed: int = SEED,
  sampling: "SamplingConfig | None" = None,
  overwrite: bool = False,
  report: Report | None = None,
) -> Summary:
  """Restores a picture, or all pictures in a folder and its folders, into the same tree under `target`.

  Pictures whose result is there are left alone, so a run that was stopped goes on where it was. A picture that fails
  does not stop the others.

  Args:
    source: The picture, or the folder.
    target: The folder to write to, where pictures become .png; for a single picture a file, too.
    scale: How much larger the sides become.
    seed: Seeds the noise. A picture's result depends on it and on the picture's file name alone.
    sampling: The settings; by default the model's own.
    overwrite: Whether pictures of a folder are restored again whose result is there.
    report: What to tell as it goes; by default nothing.

  Raises:
    UserError: There is no such input, it has no pictures, the output would replace it, or the model cannot do what the
      settings ask for. (What is wrong with a single picture is in the summary.)
  """
  jobs = plan_jobs(pathlib.Path(source), pathlib.Path(target), overwrite)
  return run_jobs(model, jobs, scale=scale, seed=seed, sampling=sampling, report=report)


def plan_jobs(source: pathlib.Path, target: pathlib.Path, overwrite: bool = False) -> list[Job]:
  """What is to be restored, and into which files.

  Raises:
    UserError: There is no input, a folder has no pictures, or two would become one file.
  """
  if not source.exists():
    raise UserError(f"{source}: no such file or folder")
  if not (source.is_file() or source.is_dir()):
    raise UserError(f"{source}: is neither a regular file nor a folder")
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
  real_source, real_target = _real(source), _real(target)
  if real_source in real_target.parents:  # earlier results are no inputs
    images = [path for path in images if real_target not in _real(path).parents]
  if not images:
    raise UserError(f"{source}: has no pictures")
  if real_source == real_target:
    raise UserError(f"{target}: is the input; choose another output")
  inputs = {_real(path) for path in images}
  jobs, taken = [], set()
  for path in images:
    relative = path.relative_to(source)
    result = target / relative.with_suffix(".png")
    if result in taken:  # a.jpg beside a.png
      result = target / relative.with_name(f"{relative.name}.png")
    if _real(result) in inputs:
      raise UserError(f"{target}: results would replace the inputs; choose another output")
    taken.add(result)
    jobs.append(Job(path, result, path.name))
  return [job for job in jobs if overwrite or not job.target.is_file()]


def _real(path: pathlib.Path) -> pathlib.Path:
  """The path without links. `Path.resolve` refuses a link that leads to itself, and with it all other pictures."""
  return pathlib.Path(os.path.realpath(path))


def run_jobs(
  model: "StableSR",
  jobs: Sequence[Job],
  *,
  scale: float = 4.0,
  seed: int = SEED,
  sampling: "SamplingConfig | None" = None,
  report: Report | None = None,
) -> Summary:
  """Restores and writes one picture after the other; one that fails does not stop the others.

  The arguments and errors are those of `restore_folder`.
  """
  sampling, report = sampling or model.manifest.sampling, report or Report()
  model.check(sampling)
  restored, failed = [], []
  for number, job in enumerate(jobs, 1):
    report.begin(job, number, len(jobs))
    try:
      make_folder(job.target.parent)  # first: better told now than after the work
      if job.target.is_dir():
        raise UserError(f"{job.target}: is a folder")
      progress = lambda done, steps, job=job: report.step(job, done, steps)
      write_image(job.target, restore(model, job, scale=scale, seed=seed, sampling=sampling, progress=progress))
    except Exception as error:  # Even a bug that one picture meets is no reason to lose the others.
      failed.append((job, error))
      report.end(job, error)
    else:
      restored.append(job)
      report.end(job, None)
  return Summary(tuple(restored), tuple(failed))


def restore(
  model: "StableSR",
  job: Job,
  *,
  scale: float,
  seed: int,
  sampling: "SamplingConfig",
  progress: Callable[[int, int], None] | None = None,
) -> Picture:
  """Reads and restores one picture; its colour profile, EXIF and alpha are kept.

  Raises:
    UserError: The picture cannot be read, or the result is not finite.
  """
  import jax

  from stablesr_jax.inference.pipeline import scaled_size

  picture = read_image(job.source)
  require_holds(job.target, *scaled_size(picture.rgb, scale))
  if progress is not None:
    progress(0, sampling.steps)
  key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(os.fsencode(job.name))))
  [rgb] = model.upscale_batch([picture.rgb], scale=scale, keys=[key], sampling=sampling, progress=progress)
  alpha = picture.alpha
  if alpha is not None:
    alpha = np.asarray(Image.fromarray(alpha).resize(rgb.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
  return dataclasses.replace(picture, rgb=rgb, alpha=alpha)
