"""Restores picture files: one, or all in a folder and its folders.

What takes long to import is imported when the first picture is restored: wrong paths are told at once.
"""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from stablesr_jax import __version__
from stablesr_jax.errors import UserError
from stablesr_jax.files import make_folder
from stablesr_jax.images import (
  WRITABLE_SUFFIXES,
  Output,
  Picture,
  fill_transparent,
  list_images,
  passed_over,
  read_image,
  require_holds,
  resize_alpha,
  write_image,
)
from stablesr_jax.inference.processes import Place

if TYPE_CHECKING:
  from stablesr_jax.config import SamplingConfig
  from stablesr_jax.inference.pipeline import StableSR

SEED = 42

# Reading and writing wait for compression, which holds no lock of Python's. More would only crowd a small machine.
_THREADS = 4


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

  def begin(self, jobs: Sequence[Job], number: int, count: int) -> None:
    """Called when pictures are to be restored together, the `number`-th (from 1) of `count` and those after it."""

  def step(self, done: int, steps: int) -> None:
    """Called before those pictures' denoising steps, with `done` 0, and after each of them."""

  def note(self, job: Job, note: str) -> None:
    """Called with what is odd about a picture that is restored all the same, before `begin`."""

  def end(self, job: Job, error: Exception | None) -> None:
    """Called when a picture is written, or with the error that kept it from that. The next ones may have begun."""


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
  output: Output = Output(),
  group: int | None = None,
  place: Place = Place(),
  report: Report | None = None,
) -> Summary:
  """Restores a picture, or all pictures in a folder and its folders, into the same tree under `target`.

  Pictures whose result is there are left alone, so a run that was stopped goes on where it was. A picture that fails
  does not stop the others.

  Args:
    source: The picture, or the folder.
    target: The folder to write to, where pictures become `output.format`; for a single picture a file, too.
    scale: How much larger the sides become.
    seed: Seeds the noise. A picture's result depends on it and on the picture's file name alone.
    sampling: The settings; by default the model's own.
    overwrite: Whether pictures of a folder are restored again whose result is there.
    output: The format, bits, quality, metadata and names of the results.
    group: The number of pictures that are restored together; by default as many as fill the devices, of small pictures
      on an accelerator many, on a CPU one. A picture's result does not depend on its company.
    place: Which of several processes this is that divide the folder among themselves.
    report: What to tell as it goes; by default nothing.

  Raises:
    UserError: There is no such input, it has no pictures, the output would replace it, or the model cannot do what the
      settings ask for. (What is wrong with a single picture is in the summary.)
  """
  namer = functools.partial(output.file_name, scale=scale, model=model.manifest.name)
  jobs = plan_jobs(pathlib.Path(source), pathlib.Path(target), overwrite, place, output, namer)
  return run_jobs(model, jobs, scale=scale, seed=seed, sampling=sampling, output=output, group=group, report=report)


def plan_jobs(
  source: pathlib.Path,
  target: pathlib.Path,
  overwrite: bool = False,
  place: Place = Place(),
  output: Output = Output(),
  namer: Callable[[str, str], str] | None = None,
) -> list[Job]:
  """What is to be restored, and into which files; of several processes, by this one.

  Args:
    namer: Gives a result's name for its input's without and with suffix; by default `output.file_name` without a model.

  Raises:
    UserError: There is no input, a folder has no pictures, two would become one file, or the format does not have what
      `output` asks for.
  """
  namer = namer or functools.partial(output.file_name, scale=1, model="")
  if not source.exists():
    raise UserError(f"{source}: {'standard input is not read' if str(source) == '-' else 'no such file or folder'}")
  if not (source.is_file() or source.is_dir()):
    raise UserError(f"{source}: is neither a regular file nor a folder")
  if source.is_file():
    if target.is_dir() or target.suffix.lower() not in WRITABLE_SUFFIXES:
      if target.suffix and not target.is_dir():
        raise UserError(f"{target}: cannot write {target.suffix} (use {', '.join(WRITABLE_SUFFIXES)}, or a folder)")
      target = target / namer(source.stem, source.name)
    output.require_suits(target)
    if target.exists() and target.samefile(source):
      raise UserError(f"{target}: is the input; choose another output")
    return [Job(source, target, source.name)][place.process :: place.processes]
  if target.is_file():
    raise UserError(f"{target}: is a file, but the input is a folder")
  output.require_suits(pathlib.Path(namer("results", "results")))
  images = list_images(source)
  real_source, real_target = _real(source), _real(target)
  if real_source in real_target.parents:  # earlier results are no inputs
    images = [path for path in images if real_target not in _real(path).parents]
  if not images:
    raise UserError("; ".join(filter(None, (f"{source}: has no pictures", passed_over(source)))))
  if real_source == real_target:
    raise UserError(f"{target}: is the input; choose another output")
  inputs = {_real(path) for path in images}
  jobs, taken = [], set()
  for path in images:
    relative = path.relative_to(source)
    result = target / relative.with_name(namer(path.stem, path.name))
    if result in taken:  # a.jpg beside a.png
      result = target / relative.with_name(namer(path.name, path.name))
    if _real(result) in inputs:
      raise UserError(f"{target}: results would replace the inputs; choose another output")
    taken.add(result)
    jobs.append(Job(path, result, path.name))
  # Divided before it is seen what is there: the others write at the same time.
  mine = jobs[place.process :: place.processes]
  return [job for job in mine if overwrite or not job.target.is_file()]


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
  output: Output = Output(),
  group: int | None = None,
  report: Report | None = None,
) -> Summary:
  """Restores and writes pictures, several together; one that fails does not stop the others.

  While some are restored, those before are written and those after are read.

  The arguments and errors are those of `restore_folder`.
  """
  if group is not None and group < 1:
    raise UserError(f"group {group}: must be at least 1")
  if not 0 < scale < math.inf:
    raise UserError(f"scale {scale}: must be a positive number")
  sampling, report = sampling or model.manifest.sampling, report or Report()
  model.check(sampling)
  restored: list[Job] = []
  failed: list[tuple[Job, Exception]] = []

  def end(job: Job, error: Exception | None) -> None:
    if error is None:
      restored.append(job)
    else:
      failed.append((job, error))
    report.end(job, error)

  def has_room(group_so_far: Sequence[Picture]) -> bool:
    if group is not None:
      return len(group_so_far) < group
    return model.has_room([picture.rgb.shape[:2] for picture in group_so_far], scale=scale, sampling=sampling)

  # What tells a result's origin comes first: by it an earlier record is known.
  record = {"stablesr_jax": __version__, "model": model.manifest.name, "scale": scale, "seed": seed}
  record |= {"sampling": dataclasses.asdict(sampling)}
  write = functools.partial(_write, output=output, record=record)
  with _threads() as threads:
    writing = _Writing(threads, end, write)
    for number, together in _groups(threads, jobs, scale, has_room, end):
      for job, picture in together:
        for note in picture.notes:
          report.note(job, note)
      report.begin([job for job, _ in together], number, len(jobs))
      report.step(0, sampling.steps)

      def step(done: int, steps: int) -> None:
        writing.tell()
        report.step(done, steps)

      for job, picture, result in _restore(model, together, scale=scale, seed=seed, sampling=sampling, progress=step):
        if isinstance(result, Exception):
          end(job, result)
        else:
          writing.add(job, picture, result)
    writing.tell(wait=True)
  return Summary(tuple(restored), tuple(failed))


Restored = tuple[Job, Picture, np.ndarray | Exception]


def _restore(
  model: "StableSR",
  together: Sequence[tuple[Job, Picture]],
  *,
  scale: float,
  seed: int,
  sampling: "SamplingConfig",
  progress: Callable[[int, int], None],
) -> list[Restored]:
  """Restores pictures together; if that fails, each alone, so that one does no harm to the others."""
  import jax

  key = lambda job: jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(os.fsencode(job.name))))
  try:
    results = model.upscale_batch(
      [picture.rgb for _, picture in together],
      scale=scale,
      keys=[key(job) for job, _ in together],
      sampling=sampling,
      progress=progress,
    )
  except Exception as error:  # Even a bug that one picture meets is no reason to lose the others.
    if len(together) == 1:
      return [(*together[0], error)]
    alone = functools.partial(_restore, model, scale=scale, seed=seed, sampling=sampling, progress=progress)
    return [result for one in together for result in alone([one])]
  return [(job, picture, rgb) for (job, picture), rgb in zip(together, results, strict=True)]


def _groups(
  threads: ThreadPoolExecutor,
  jobs: Sequence[Job],
  scale: float,
  has_room: Callable[[Sequence[Picture]], bool],
  end: Callable[[Job, Exception], None],
) -> Iterator[tuple[int, list[tuple[Job, Picture]]]]:
  """Pictures that are restored together, in order, and the number of the first; as many are read ahead.

  Those that cannot be read, or whose result could not be written, are left out and told to `end`.
  """
  reading: deque[tuple[int, Job, Future[Picture]]] = deque()
  coming = iter(enumerate(jobs, 1))
  first, together = 0, []
  while True:
    while len(reading) <= len(together) and (following := next(coming, None)) is not None:
      number, job = following
      reading.append((number, job, threads.submit(_read, job, scale)))
    if not reading:
      break
    number, job, future = reading.popleft()
    try:
      picture = future.result()
      room = has_room([*(picture for _, picture in together), picture])
    except Exception as error:
      end(job, error)
      continue
    first, together = first or number, [*together, (job, picture)]
    if not room:
      yield first, together
      first, together = 0, []
  if together:
    yield first, together


def _read(job: Job, scale: float) -> Picture:
  """Reads a picture, and finds out what would keep its result from being written: better now than after the work."""
  from stablesr_jax.inference.pipeline import scaled_size

  make_folder(job.target.parent)
  if job.target.is_dir():
    raise UserError(f"{job.target}: is a folder")
  picture = read_image(job.source)
  require_holds(job.target, *scaled_size(picture.rgb.shape[:2], scale))
  return dataclasses.replace(picture, rgb=fill_transparent(picture.rgb, picture.alpha))


class _Writing:
  """Results that are written while the next pictures are restored; each is told to `end` in its turn."""

  def __init__(
    self,
    threads: ThreadPoolExecutor,
    end: Callable[[Job, Exception | None], None],
    write: Callable[[Job, Picture, np.ndarray], None],
  ):
    self._threads, self._end, self._write = threads, end, write
    self._waiting: deque[tuple[Job, Future[None]]] = deque()

  def add(self, job: Job, picture: Picture, rgb: np.ndarray) -> None:
    self._waiting.append((job, self._threads.submit(self._write, job, picture, rgb)))

  def tell(self, wait: bool = False) -> None:
    """Tells of those that are written; of all, once they are."""
    while self._waiting and (wait or self._waiting[0][1].done()):
      job, future = self._waiting.popleft()
      error = future.exception()
      if error is not None and not isinstance(error, Exception):
        raise error
      self._end(job, error)


def _write(job: Job, picture: Picture, rgb: np.ndarray, *, output: Output, record: dict[str, Any]) -> None:
  """Writes a restored picture, with what belongs to it, its alpha enlarged."""
  alpha = picture.alpha if picture.alpha is None else resize_alpha(picture.alpha, *rgb.shape[:2])
  write_image(job.target, dataclasses.replace(picture, rgb=rgb, alpha=alpha), output, record)


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
  """Threads that read and write. Where the block is left early, what they have not begun is dropped."""
  threads = ThreadPoolExecutor(_THREADS)
  try:
    yield threads
  finally:
    threads.shutdown(cancel_futures=True)
