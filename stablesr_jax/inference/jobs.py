"""Restores picture files: one, or all in a folder and its folders.

What takes long to import is imported when the first picture is restored: wrong paths are told at once.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from stablesr_jax import __version__
from stablesr_jax.errors import UserError
from stablesr_jax.files import Claim, claim, make_folder, require_writable
from stablesr_jax.images import (
  Output,
  Picture,
  decode_image,
  fill_transparent,
  image_size,
  read_file,
  require_holds,
  resize_alpha,
  write_image,
)
from stablesr_jax.inference.companions import find_companions
from stablesr_jax.inference.manifest import COMPANIONS, MEANING, Record, Results, Settings, Stamp, clean_up, stamp
from stablesr_jax.inference.output_size import OutputSize, output_size
from stablesr_jax.inference.plan import (
  Existing,
  Failure,
  Found,
  Job,
  Plan,
  describe,
  find_jobs,
  foreign,
  make_plan,
  source_path,
)
from stablesr_jax.inference.processes import Place
from stablesr_jax.inference.step_pictures import StepPictures

if TYPE_CHECKING:
  from stablesr_jax.checkpoints.store import Manifest
  from stablesr_jax.config import SamplingConfig
  from stablesr_jax.inference.pipeline import StableSR
  from stablesr_jax.inference.pre_clean import PreCleaner

SEED = 42

# Reading and writing wait for compression, which holds no lock of Python's. More would only crowd a small machine.
_THREADS = 4


class Report:
  """What is told while pictures are restored. These methods do nothing; a subclass overrides those that it wants."""

  def begin(self, jobs: Sequence[Job], number: int, count: int) -> None:
    """Called when pictures are to be restored together, the `number`-th (from 1) of `count` and those after it."""

  def step(self, done: int, steps: int) -> None:
    """Called before those pictures' denoising steps, with `done` 0, and after each of them."""

  def note(self, job: Job, note: str) -> None:
    """Called with what is odd about a picture that is restored all the same, before `begin`."""

  def remark(self, remark: str) -> None:
    """Called once with what is odd about the run itself: memory that ran out, half precision that did not suffice."""

  def end(self, job: Job, error: Exception | None) -> None:
    """Called when a picture is written, or with the error that kept it from that. The next ones may have begun."""


@dataclasses.dataclass(frozen=True)
class Summary:
  """What became of the pictures.

  Attributes:
    restored: Those that were restored and written.
    failed: Those that were not, and why: `UserError` and `OSError` for a damaged file or a full disk, anything else
      for a bug.
    current: How many needed nothing, as their result is what is wanted.
    claimed: Those that another run has in work.
    left: How many others were left alone, by the reason.
  """

  restored: tuple[Job, ...]
  failed: tuple[Failure, ...]
  current: int = 0
  claimed: tuple[Job, ...] = ()
  left: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

  def __str__(self) -> str:
    """One line."""
    told = [f"{len(self.restored)} restored"]
    told += [f"{self.current} as before"] if self.current else []
    told += [f"{len(self.failed)} could not be"] if self.failed else []
    left = self.left + collections.Counter({"in work by another run": len(self.claimed)})
    return ", ".join(told) + (f"; left out: {describe(+left)}" if +left else "")

  def with_plan(self, found: Found, plan: Plan) -> "Summary":
    """With what was known before the work."""
    failed = (*plan.refused, *self.failed)
    return dataclasses.replace(
      self, failed=failed, current=self.current + plan.current, left=self.left + plan.kept + found.passed
    )


def restore_folder(
  model: "StableSR",
  source: str | os.PathLike,
  target: str | os.PathLike,
  *,
  scale: float | OutputSize = 4.0,
  seed: int = SEED,
  sampling: "SamplingConfig | None" = None,
  existing: Existing = "update",
  output: Output = Output(),
  group: int | None = None,
  place: Place = Place(),
  report: Report | None = None,
  pre_cleaner: "PreCleaner | None" = None,
  pre_cleaned: str | os.PathLike | None = None,
  reference: str | os.PathLike | None = None,
  steps: StepPictures | None = None,
) -> Summary:
  """Restores a picture, or all pictures in a folder and its folders, into the same tree under `target`.

  Pictures whose result is there and current are left alone, so a run that was stopped goes on where it was. A picture
  that fails does not stop the others.

  Args:
    source: The picture, or the folder.
    target: The folder to write to, where pictures become `output.format`; for a single picture a file, too.
    scale: How much larger the sides become, or an `OutputSize`.
    seed: Seeds the noise. A picture's result depends on it and on the picture's file name alone.
    sampling: The settings; by default the model's own.
    existing: What to do with results that are there: "update" restores those again that were made of another input or
      with other settings, and replaces no file of somebody else's; "skip" leaves all; "redo" restores all again and
      replaces whatever is there; "error" does not begin unless all that are there are current.
    output: The format, bits, quality, metadata and names of the results.
    group: The number of pictures that are restored together; by default as many as fill the devices, of small pictures
      on an accelerator many, on a CPU one. A picture's result does not depend on its company.
    place: Which of several processes this is that divide the folder among themselves.
    report: What to tell as it goes; by default nothing.
    pre_cleaner: Cleans each picture before it is restored.
    pre_cleaned: The folder of pictures, cleaned already, that take the inputs' places, found by their names in its
      tree; for a single picture a file, too. They have their inputs' sizes.
    reference: Likewise of pictures of any size that guide the restoration, by `sampling.reference_weight`.
    steps: Writes what each step took a result for.

  Raises:
    UserError: There is no such input, it has no pictures, the output would replace it or cannot be written, or the
      model cannot do what the settings ask for. (What is wrong with a single picture is in the summary.)
  """
  size = output_size(scale)
  _require_group(group)
  namer = functools.partial(output.file_name, scale=str(size), model=model.manifest.name)
  found = find_jobs(pathlib.Path(source), pathlib.Path(target), output, namer)
  found = find_companions(found, pathlib.Path(source), pre_cleaned=pre_cleaned, reference=reference)
  sampling = sampling or model.manifest.sampling
  identity, cleaner = (
    model_identity(model.manifest, model.path),
    pre_cleaner and model_identity(pre_cleaner.manifest, pre_cleaner.path),
  )
  wanted = settings(identity, size, seed, sampling, model.precision, output, cleaner)
  results = Results(wanted) if found.recorded else None
  prepare(found, place)
  plan = make_plan(found, results, existing, place)
  options: dict[str, Any] = {"scale": size, "seed": seed, "sampling": sampling, "group": group, "report": report}
  options |= {"output": output, "pre_cleaner": pre_cleaner, "steps": steps}
  return run_jobs(model, plan.jobs, results=results, existing=existing, **options).with_plan(found, plan)


def settings(
  model: str,
  size: OutputSize,
  seed: int,
  sampling: "SamplingConfig",
  precision: str,
  output: Output,
  pre_cleaner: str | None = None,
) -> Settings:
  """All that a result depends on beside its input and what belongs to that, but for rounding.

  Args:
    model: What `model_identity` gives.
    precision: float32 or bfloat16; or "auto", which results of either are as good for.
    pre_cleaner: What `model_identity` gives for the pre-cleaner; None: there is none.
  """
  own = {"meaning": MEANING, "model": model, "seed": int(seed), "precision": precision} | size.given
  written = {name: value for name, value in dataclasses.asdict(output).items() if name not in ("format", "name")}
  cleaned = {"pre_clean": pre_cleaner} if pre_cleaner else {}
  return own | dataclasses.asdict(sampling) | written | cleaned


def model_identity(manifest: "Manifest", path: str | os.PathLike | None) -> str:
  """What tells a model from others: a digest of its folder; of one that came from none, of its manifest alone."""
  from stablesr_jax.checkpoints.digest import model_digest

  if path is not None:
    return model_digest(path)
  return hashlib.sha256(json.dumps(dataclasses.asdict(manifest), sort_keys=True).encode()).hexdigest()[:16]


def prepare(found: Found, place: Place = Place()) -> None:
  """Sees to it that results can be written into all of their folders, and cleans up there what killed runs left.

  Raises:
    UserError: A folder cannot be written to.
  """
  for folder in sorted({job.target.parent for job in found.jobs[place.process :: place.processes]}):
    require_writable(folder)
    if found.recorded:
      clean_up(folder)


def short_of_space(jobs: Sequence[Job], size: OutputSize) -> str:
  """What to tell where the results may not have room on their disk: without compression they would not. Empty if they
  have, or pictures do not tell their sizes."""
  wanted = 0
  for job in jobs:
    with contextlib.suppress(UserError):  # beyond all reason: told when it is its turn
      if known := job_size(job):
        height, width = size.of(known)
        wanted += 3 * height * width
  there = next(path for path in (jobs[0].target, *jobs[0].target.absolute().parents) if path.is_dir())
  free = shutil.disk_usage(there).free
  return f"{there}: {free / 1e9:.1f} GB are free, the results may need {wanted / 1e9:.1f}" if wanted > free else ""


def job_size(job: Job) -> tuple[int, int] | None:
  """The height and width of a job's picture, from its file's header; None if that does not say, or there is no file."""
  return image_size(job.source) if job.content is None and job.source.is_file() else None


def _require_group(group: int | None) -> None:
  """Raises UserError for a number of pictures that cannot be restored together."""
  if group is not None and group < 1:
    raise UserError(f"group {group}: must be at least 1")


def run_jobs(
  model: "StableSR",
  jobs: Sequence[Job],
  *,
  scale: float | OutputSize = 4.0,
  seed: int = SEED,
  sampling: "SamplingConfig | None" = None,
  results: Results | None = None,
  existing: Existing = "update",
  output: Output = Output(),
  group: int | None = None,
  report: Report | None = None,
  pre_cleaner: "PreCleaner | None" = None,
  steps: StepPictures | None = None,
) -> Summary:
  """Restores and writes pictures, several together; one that fails does not stop the others.

  While some are restored, those before are written and those after are read. What other runs have in work is tried
  again at the end.

  Args:
    results: What is known of the results, where they are to be recorded.

  The other arguments and errors are those of `restore_folder`.
  """
  size = output_size(scale)
  _require_group(group)
  sampling, report = sampling or model.manifest.sampling, report or Report()
  model.check(sampling)
  outcome = _Outcome(report)
  # What tells a result's origin comes first: by it an earlier record is known.
  record = {"stablesr_jax": __version__, "model": model.manifest.name, **size.given, "seed": seed}
  record |= {"sampling": dataclasses.asdict(sampling)}
  record |= {"pre_clean": pre_cleaner.manifest.name} if pre_cleaner else {}
  desk = _Desk(results, existing, size, model.precision, output, record)

  def has_room(group_so_far: Sequence[_Work]) -> bool:
    if group is not None:
      return len(group_so_far) < group
    return model.has_room([work.picture.rgb.shape[:2] for work in group_so_far], scale=size, sampling=sampling)

  writing: _Writing | None = None
  try:
    with _threads() as threads:
      writing = _Writing(threads, desk, outcome)
      for number, together in _groups(threads, jobs, desk, has_room, outcome):
        for work in together:
          for note in work.notes:
            report.note(work.job, note)
        report.begin([work.job for work in together], number, len(jobs))
        report.step(0, sampling.steps)

        def step(done: int, steps: int) -> None:
          writing.tell()
          report.step(done, steps)

        restored = _restore(
          model,
          together,
          size=size,
          seed=seed,
          sampling=sampling,
          progress=step,
          pre_cleaner=pre_cleaner,
          steps=steps,
          tell=report.remark,
        )
        for work, result in restored:
          if isinstance(result, Exception):
            desk.drop(work)
            outcome.end(work.job, result)
          else:
            writing.add(work, result)
      writing.tell(wait=True)
  except BaseException:  # What was written is written: its threads have ended.
    if writing is not None:
      writing.tell()
    raise
  finally:
    desk.clear()
  return outcome.summary()


class _Outcome:
  """What became of the pictures so far, in the order of their ends."""

  def __init__(self, report: Report):
    self._report = report
    self._restored: list[Job] = []
    self._failed: list[Failure] = []
    self._claimed: list[Job] = []
    self._current = 0

  def end(self, job: Job, error: Exception | None) -> None:
    if isinstance(error, _Claimed):
      self._claimed.append(job)
      return
    if isinstance(error, _Current):
      self._current += 1
      return
    if error is None:
      self._restored.append(job)
    else:
      self._failed.append((job, error))
    self._report.end(job, error)

  def summary(self) -> Summary:
    return Summary(tuple(self._restored), tuple(self._failed), self._current, tuple(self._claimed))


class _Claimed(Exception):
  """Another run has the picture in work."""


class _Current(Exception):
  """Another run has restored the picture meanwhile."""


@dataclasses.dataclass
class _Work:
  """A picture that was read.

  Attributes:
    claim: The right to write its result.
    input: What its file held.
    companions: What belongs to it: pictures (H, W, 3), floats in [0, 1].
    stamps: What the companions' files held.
    notes: What is odd about it and its companions.
    tiles: The number of its tiles.
    seconds: How long it took to restore it.
  """

  job: Job
  picture: Picture
  claim: Claim
  input: Stamp
  companions: Mapping[str, np.ndarray]
  stamps: Mapping[str, Stamp]
  notes: Sequence[str]
  tiles: int = 0
  seconds: float = 0.0


class _Desk:
  """Reads pictures and writes results, each of which it has claimed meanwhile. Threads share it."""

  def __init__(
    self,
    results: Results | None,
    existing: Existing,
    size: OutputSize,
    precision: str,
    output: Output,
    record: dict[str, Any],
  ):
    self._results, self._existing, self._size, self._precision = results, existing, size, precision
    self._output, self._record = output, record
    self._claims: dict[pathlib.Path, Claim] = {}
    self._lock = threading.Lock()
    self._cleared = False

  def plan(self, job: Job) -> Record | None:
    """The newest record of a result, to find out later whether there is another."""
    return self._results.newest(job.target) if self._results else None

  def read(self, job: Job, known: Record | None) -> _Work:
    """Reads a picture, and finds out what would keep its result from being written: better now than after the work.

    Raises:
      _Claimed, _Current: It is another run's.
    """
    make_folder(job.target.parent)
    if job.target.is_dir():
      raise UserError(f"{job.target}: is a folder")
    claimed = self._claim(job.target)
    try:
      self._require_wanted(job, known)
      picture, held = _read(job.source, job.content)
      size = picture.rgb.shape[0], picture.rgb.shape[1]
      require_holds(job.target, *self._size.of(size))
      companions = {kind: _read(path) for kind, path in job.companions.items()}
      notes = [*picture.notes, *filter(None, [self._size.note(size)])]
      for kind, (companion, _) in companions.items():
        notes += [f"its {COMPANIONS[kind]} {note}" for note in companion.notes]
      pixels = {kind: companion.rgb for kind, (companion, _) in companions.items()}
      if (cleaned := pixels.get("pre_cleaned")) is not None and cleaned.shape != picture.rgb.shape:
        sizes = (f"{width}x{height}" for height, width, _ in (cleaned.shape, picture.rgb.shape))
        raise UserError("{}: has {} pixels, but its input {}".format(job.pre_cleaned, *sizes))
      picture = dataclasses.replace(
        picture, rgb=fill_transparent(pixels.pop("pre_cleaned", picture.rgb), picture.alpha)
      )
      return _Work(job, picture, claimed, held, pixels, {kind: stamp for kind, (_, stamp) in companions.items()}, notes)
    except BaseException:
      self._drop(claimed)
      raise

  def write(self, work: _Work, rgb: np.ndarray) -> None:
    """Writes a restored picture, with what belongs to it, its alpha enlarged."""
    try:
      alpha = work.picture.alpha
      alpha = alpha if alpha is None else resize_alpha(alpha, *rgb.shape[:2])
      place = functools.partial(self._place, work)
      restored = dataclasses.replace(work.picture, rgb=rgb, alpha=alpha)
      write_image(work.job.target, restored, self._output, self._record, place)
    finally:
      self.drop(work)

  def drop(self, work: _Work) -> None:
    """Gives up a picture, if it was not written."""
    self._drop(work.claim)

  def clear(self) -> None:
    """Gives up all that was not written, and lets nothing more be read."""
    with self._lock:
      self._cleared, claims = True, list(self._claims.values())
    for left in claims:
      left.drop()

  @contextlib.contextmanager
  def _place(self, work: _Work, path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write a result. Its record is on the disk before it has its name: killed between them, the next run
    finds it under its temporary name, and by its record whole."""
    yield work.claim.temporary
    with work.claim.temporary.open("rb") as file:
      os.fsync(file.fileno())
    if self._results is not None:
      self._results.manifest(path.parent).add(
        Record(
          path.name,
          stamp(work.claim.temporary),
          source_path(work.job.source, path),
          work.input,
          {**self._results.wanted, "precision": self._precision},
          work.tiles,
          round(work.seconds, 3),
          work.stamps,
        )
      )
    work.claim.place()

  def _require_wanted(self, job: Job, known: Record | None) -> None:
    """Looks again whether a result is wanted: since it was planned, other runs may have ended, and files have come."""
    if self._results is None or (newest := self._results.newest(job.target)) == known and self._existing == "redo":
      return
    there = self._results.judge(job.source, job.target, job.companions)
    if there.kind == "current" and (newest != known or self._existing != "redo"):
      raise _Current
    if self._existing == "skip" and there.kind != "absent":
      raise _Current
    if there.kind == "foreign" and self._existing != "redo":
      raise foreign(job, there)

  def _claim(self, target: pathlib.Path) -> Claim:
    claimed = claim(target)
    if claimed is None:
      raise _Claimed
    with self._lock:
      if not self._cleared:
        self._claims[target] = claimed
        return claimed
    claimed.drop()
    raise _Claimed

  def _drop(self, claimed: Claim) -> None:
    claimed.drop()
    with self._lock:
      self._claims.pop(claimed.path, None)


def _read(path: pathlib.Path, content: bytes | None = None) -> tuple[Picture, Stamp]:
  """A picture, of its file or of what that holds, and the content's stamp."""
  modified, data = 0, content
  if data is None:
    modified = path.stat().st_mtime_ns if path.is_file() else 0  # what is none is told by `read_file`
    data = read_file(path)
  picture = decode_image(data, str(path), thorough=True)
  return picture, Stamp(len(data), modified, hashlib.sha256(data).hexdigest())


def _restore(
  model: "StableSR",
  together: Sequence[_Work],
  *,
  size: OutputSize,
  seed: int,
  sampling: "SamplingConfig",
  progress: Callable[[int, int], None],
  pre_cleaner: "PreCleaner | None",
  steps: StepPictures | None,
  tell: Callable[[str], None],
) -> list[tuple[_Work, np.ndarray | Exception]]:
  """Restores pictures together; if that fails, each alone, so that one does no harm to the others."""
  import jax

  key = lambda job: jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(os.fsencode(job.name))))
  began = time.monotonic()
  more: dict[str, Any] = {}
  if together[0].job.reference is not None:
    more["references"] = [work.companions["reference"] for work in together]
  if steps is not None:
    more["watch"] = lambda number, step, picture: steps.write(together[number].job, step, sampling.steps, picture)
    more["watch_every"] = steps.every
  try:
    images = [work.picture.rgb for work in together]
    results = model.upscale_batch(
      [pre_cleaner.clean(image) for image in images] if pre_cleaner else images,
      scale=size,
      keys=[key(work.job) for work in together],
      sampling=sampling,
      progress=progress,
      tell=tell,
      **more,
    )
  except Exception as error:  # Even a bug that one picture meets is no reason to lose the others.
    if len(together) == 1:
      return [(together[0], error)]
    alone = functools.partial(
      _restore,
      model,
      size=size,
      seed=seed,
      sampling=sampling,
      progress=progress,
      pre_cleaner=pre_cleaner,
      steps=steps,
      tell=tell,
    )
    return [result for one in together for result in alone([one])]
  _share(together, time.monotonic() - began, model, size, sampling)
  return list(zip(together, results, strict=True))


def _share(together: Sequence[_Work], seconds: float, model: "StableSR", size: OutputSize, sampling: "SamplingConfig"):
  """Notes for pictures how many tiles they have, and divides the time among them by that."""
  from stablesr_jax.inference.picture_sizes import count_tiles

  for work in together:
    own = work.picture.rgb.shape[:2]
    work.tiles = count_tiles(model.manifest.architecture, own, scale=size, sampling=sampling)
  tiles = sum(work.tiles for work in together)
  for work in together:
    work.seconds = seconds * work.tiles / tiles


def _groups(
  threads: ThreadPoolExecutor,
  jobs: Sequence[Job],
  desk: _Desk,
  has_room: Callable[[Sequence[_Work]], bool],
  outcome: _Outcome,
) -> Iterator[tuple[int, list[_Work]]]:
  """Pictures that are restored together, in order, and the number of the first; as many are read ahead.

  Those that cannot be read, or whose result could not be written, are left out and told to `outcome`.
  """
  reading: deque[tuple[int, Job, Future[_Work]]] = deque()
  # The jobs, and behind them those that another run had in work when it was their turn.
  coming = deque((number, job, desk.plan(job)) for number, job in enumerate(jobs, 1))
  known = {job: record for _, job, record in coming}  # but for once
  first, together = 0, list[_Work]()
  while True:
    while len(reading) <= len(together) and coming:
      number, job, record = coming.popleft()
      reading.append((number, job, threads.submit(desk.read, job, record)))
    if not reading:
      break
    number, job, future = reading.popleft()
    try:
      work = future.result()
      room = has_room([*together, work])
    except _Claimed as error:
      if job in known:
        coming.append((number, job, known.pop(job)))
      else:
        outcome.end(job, error)
      continue
    except Exception as error:
      outcome.end(job, error)
      continue
    first, together = first or number, [*together, work]
    if not room:
      yield first, together
      first, together = 0, []
  if together:
    yield first, together


class _Writing:
  """Results that are written while the next pictures are restored; each is told to `outcome` in its turn."""

  def __init__(self, threads: ThreadPoolExecutor, desk: _Desk, outcome: _Outcome):
    self._threads, self._desk, self._outcome = threads, desk, outcome
    self._waiting: deque[tuple[Job, Future[None]]] = deque()

  def add(self, work: _Work, rgb: np.ndarray) -> None:
    self._waiting.append((work.job, self._threads.submit(self._desk.write, work, rgb)))

  def tell(self, wait: bool = False) -> None:
    """Tells of those that are written; of all, once they are."""
    while self._waiting and (wait or self._waiting[0][1].done()):
      job, future = self._waiting.popleft()
      if future.cancelled():
        continue
      error = future.exception()
      if error is not None and not isinstance(error, Exception):
        raise error
      self._outcome.end(job, error)


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
  """Threads that read and write. Where the block is left early, what they have not begun is dropped."""
  threads = ThreadPoolExecutor(_THREADS)
  try:
    yield threads
  finally:
    threads.shutdown(cancel_futures=True)
