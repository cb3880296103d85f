"""Which pictures become which files, and which of them are there already."""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from stablesr_jax.errors import UserError
from stablesr_jax.files import is_temporary
from stablesr_jax.images import IMAGE_SUFFIXES, WRITABLE_SUFFIXES, Output
from stablesr_jax.inference.manifest import FILE, Judgement, Manifest, Results
from stablesr_jax.inference.processes import Place

# What to do with a result that is there. "update": what is current stays, what was made of another input or with other
# settings is made again, and a file of somebody else's is an error of its picture. "skip": all stay. "redo": all are
# made again, somebody else's file is replaced. "error": no work, unless all that are there are current.
Existing = Literal["update", "skip", "redo", "error"]

_MOST_BYTES = 255  # of a file's name, where the system does not say


@dataclasses.dataclass(frozen=True)
class Job:
  """One picture to restore.

  Attributes:
    source: The file to read.
    target: The file to write; its folder is made if need be.
    name: What the picture's noise is drawn from, beside the seed: the file's name without its folder.
    content: The picture's bytes, where `source` is no file but names them in messages.
    pre_cleaned: The picture that takes the input's place, if there is one.
    reference: The picture that guides the restoration, if there is one.
  """

  source: pathlib.Path
  target: pathlib.Path
  name: str
  content: bytes | None = None
  pre_cleaned: pathlib.Path | None = None
  reference: pathlib.Path | None = None

  @property
  def companions(self) -> dict[str, pathlib.Path]:
    """What belongs to the picture, by the name of its field."""
    given = {"pre_cleaned": self.pre_cleaned, "reference": self.reference}
    return {kind: path for kind, path in given.items() if path is not None}


Failure = tuple[Job, Exception]


@dataclasses.dataclass(frozen=True)
class Found:
  """The pictures of an input.

  Attributes:
    jobs: Those that can have a result.
    refused: Those that cannot, and why.
    passed: How many files were passed over, by the reason.
    unread: What is wrong with folders that could not be read.
    recorded: Whether the results have a manifest: not one that has a name of its own.
  """

  jobs: tuple[Job, ...]
  refused: tuple[Failure, ...] = ()
  passed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  unread: tuple[UserError, ...] = ()
  recorded: bool = True


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be done.

  Attributes:
    jobs: What to restore.
    current: The number of results that stay, as they are what is wanted.
    again: How many of `jobs` replace a result, by the reason.
    kept: How many results stay though they are not what is wanted, by the reason.
    refused: What cannot be restored, and why.
  """

  jobs: tuple[Job, ...]
  current: int
  again: collections.Counter[str]
  kept: collections.Counter[str]
  refused: tuple[Failure, ...]


# A result's name for its input's without and with suffix.
Namer = Callable[[str, str], str]


def find_jobs(
  source: pathlib.Path, target: pathlib.Path, output: Output = Output(), namer: Namer | None = None
) -> Found:
  """The pictures of `source`, a file or a folder, and which files under `target` they become.

  A picture keeps the name that its result has by the manifest in its folder. Others are called after the picture; where
  that name is another's, the picture's suffix stays in it: a.jpg beside a.png becomes a.jpg.png.

  Args:
    namer: By default `output.file_name` without a model.

  Raises:
    UserError: There is no input, a folder has no pictures, results would replace inputs, or the format does not have
      what `output` asks for.
  """
  namer = namer or functools.partial(output.file_name, scale="1", model="")
  if not source.exists():
    raise UserError(f"{source}: no such file or folder")
  if source.is_file():
    job = _single(source, target, namer)
    output.require_suits(job.target)
    return Found((job,), recorded=job.target != target)
  if not source.is_dir():
    raise UserError(f"{source}: is neither a regular file nor a folder")
  if target.is_file():
    raise UserError(f"{target}: is a file, but the input is a folder")
  if _real(source) == _real(target):
    raise UserError(f"{target}: is the input; choose another output")
  output.require_suits(pathlib.Path(namer("results", "results")))
  pictures, passed, unread = _walk(source, target)
  if not pictures:
    passed_over = f" ({describe(passed)})" if passed else ""
    raise UserError(f"{unread[0]}" if unread else f"{source}: has no pictures{passed_over}")
  jobs, refused = [], []
  results, most = _Names(source, target, namer).choose(pictures), _longest_name(target)
  inputs = {_real(path) for path in pictures}
  for path in pictures:
    job = Job(path, results[path], path.name)
    if _real(job.target) in inputs:
      raise UserError(f"{target}: results would replace the inputs; choose another output")
    if (length := len(os.fsencode(job.target.name))) > most:
      message = f"its result's name would have {length} bytes, of which the file system takes {most}"
      refused.append((job, UserError(message)))
    else:
      jobs.append(job)
  return Found(tuple(jobs), tuple(refused), passed, tuple(unread))


def _single(source: pathlib.Path, target: pathlib.Path, namer: Namer) -> Job:
  """What becomes of a picture: the file that is asked for, or one in the folder."""
  if target.is_dir() or target.suffix.lower() not in WRITABLE_SUFFIXES:
    if target.suffix and not target.is_dir():
      raise UserError(f"{target}: cannot write {target.suffix} (use {', '.join(WRITABLE_SUFFIXES)}, or a folder)")
    target = _Names(source.parent, target, namer).choose([source])[source]
  if target.exists() and target.samefile(source):
    raise UserError(f"{target}: is the input; choose another output")
  return Job(source, target, source.name)


def make_plan(found: Found, results: Results | None, existing: Existing, place: Place = Place()) -> Plan:
  """What of the pictures is to be done; of several processes, by this one.

  Args:
    results: What is known of the results; None for a result without a manifest, which is replaced unless `existing` is
      "skip" or "error".

  Raises:
    UserError: `existing` is "error", and there are results that are not what is wanted.
    OSError: A folder or file is not to be read.
  """
  # Divided before it is seen what is there: the others write at the same time.
  mine = found.jobs[place.process :: place.processes]
  jobs, refused = [], list(found.refused[place.process :: place.processes])
  current, again, kept, others = 0, collections.Counter[str](), collections.Counter[str](), []
  for job in mine:
    found_there = _judge(job, results)
    if found_there.kind == "current" and existing != "redo":
      current += 1
    elif found_there.kind == "absent":
      jobs.append(job)
    elif existing == "skip":
      kept[found_there.reason or "there already"] += 1
    elif existing == "error":
      others.append((job, found_there))
    elif found_there.kind == "foreign" and existing == "update":
      refused.append((job, foreign(job, found_there)))
    else:
      jobs.append(job)
      again[found_there.reason or "as asked for"] += 1
  if others:
    job, there = others[0]
    which = f", {there.reason}" if there.reason else ""
    more = f", and {len(others) - 1} more" if len(others) > 1 else ""
    raise UserError(f"{job.target}: is there{which}{more} (--existing update, skip and redo do not mind)")
  return Plan(tuple(jobs), current, again, kept, tuple(refused))


def foreign(job: Job, found: Judgement) -> UserError:
  """What is told of a picture in whose result's place is a file of somebody else's."""
  return UserError(
    f"{job.target}: is there and {found.reason} (--existing redo replaces it, --existing skip leaves it)"
  )


def _judge(job: Job, results: Results | None) -> Judgement:
  if results is not None:
    return results.judge(job.source, job.target, job.companions)
  # The name was given for this result: it is nobody else's.
  return Judgement("stale") if job.target.is_file() else Judgement("absent")


def describe(counts: collections.Counter[str]) -> str:
  """Counts and what they are of, the largest first: "3 .txt, 1 hidden"."""
  return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def _walk(source: pathlib.Path, target: pathlib.Path) -> tuple[list[pathlib.Path], collections.Counter[str], list]:
  """The pictures in a folder and its folders, sorted; what was passed over, and what could not be read.

  Links are followed once everything else is read, so that a folder goes by its own name, and each is read once.
  """
  pictures, passed, unread = [], collections.Counter[str](), list[UserError]()
  output = _real(target) if _real(source) in _real(target).parents else None
  around = {_identity(folder) for folder in _real(source).parents}
  read, todo, linked = set(), collections.deque([source]), collections.deque[pathlib.Path]()
  while todo or linked:
    folder = todo.popleft() if todo else linked.popleft()
    real = _real(folder)
    if output is not None and (real == output or output in real.parents):  # earlier results are no inputs
      continue
    try:
      identity = _identity(folder)
      if identity in read or identity in around:
        passed["linked folders that are read by another name" if identity in read else "links to folders above"] += 1
        continue
      read.add(identity)
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
      unread.append(UserError(f"{folder}: cannot be read ({error.strerror})"))
      continue
    results = Manifest(folder) if any(entry.name == FILE for entry in entries) else None
    for entry in entries:
      path = pathlib.Path(folder, entry.name)
      if entry.name == FILE or is_temporary(entry.name):
        continue
      if entry.name.startswith("."):
        passed["hidden"] += 1
      elif _is_folder(entry):
        (linked if entry.is_symlink() else todo).append(path)
      elif path.suffix.lower() not in IMAGE_SUFFIXES:
        passed[path.suffix.lower() or "without suffix"] += 1
      elif results is not None and results.matching(entry.name):
        passed["results of earlier runs"] += 1
      else:
        pictures.append(path)
  return sorted(pictures), passed, unread


def _is_folder(entry: os.DirEntry) -> bool:
  try:
    return entry.is_dir()
  except OSError:  # a link that leads to itself
    return False


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  found = folder.stat()
  return found.st_dev, found.st_ino


class _Names:
  """The names of results, by the manifests in their folders. Names that differ in case alone are taken for one: on some
  file systems they are one file."""

  def __init__(self, source: pathlib.Path, target: pathlib.Path, namer: Namer):
    self._source, self._target, self._namer = source, target, namer
    self._known: dict[pathlib.Path, _Known] = {}

  def choose(self, pictures: Sequence[pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """The results' paths."""
    chosen: dict[pathlib.Path, pathlib.Path] = {}
    taken = set[tuple[pathlib.Path, str]]()
    for pick in (self._pick_known, self._pick_new):  # what has its name keeps it, whoever comes
      for picture in pictures:
        folder = self._target / picture.parent.relative_to(self._source)
        if picture in chosen or not (names := pick(picture, folder)):
          continue
        name = next((name for name in names if (folder, _plain(name)) not in taken), None)
        if name is not None:
          chosen[picture] = folder / name
          taken.add((folder, _plain(name)))
    return chosen

  def _pick_known(self, picture: pathlib.Path, folder: pathlib.Path) -> Iterable[str]:
    """The names that a picture's results have, of those that it would be given."""
    own = self._in(folder).names_of(picture)
    return (
      (name for name in itertools.islice(self._candidates(picture.name), 1000) if _plain(name) in own) if own else ()
    )

  def _pick_new(self, picture: pathlib.Path, folder: pathlib.Path) -> Iterable[str]:
    """Names that are nobody's: neither the picture of their latest result is there, nor that result."""
    owners = self._in(folder).owners
    for name in self._candidates(picture.name):
      owner = owners.get(_plain(name))
      if owner is None or not (os.path.lexists(owner) or os.path.lexists(folder / name)):
        yield name

  def _candidates(self, name: str) -> Iterable[str]:
    """Names for a picture's result, the one to be preferred first."""
    yield self._namer(pathlib.Path(name).stem, name)
    yield self._namer(name, name)
    number = 2
    while True:
      yield self._namer(f"{name}.{number}", name + f".{number}")
      number += 1

  def _in(self, folder: pathlib.Path) -> "_Known":
    if folder not in self._known:
      self._known[folder] = _Known(folder)
    return self._known[folder]


class _Known:
  """Whose the names in a folder are.

  Attributes:
    owners: The input of the latest result of each name.
  """

  def __init__(self, folder: pathlib.Path):
    real = os.path.realpath(folder)
    self.owners = {
      _plain(record.result): pathlib.Path(os.path.normpath(os.path.join(real, record.source)))
      for record in Manifest(folder)
    }
    self._results = collections.defaultdict[str, list[str]](list)
    for result, owner in self.owners.items():
      self._results[owner.name].append(result)

  def names_of(self, picture: pathlib.Path) -> set[str]:
    """The names of a picture's results. With its folder it may have moved: then it is no longer where it was."""
    here = pathlib.Path(os.path.realpath(picture.parent), picture.name)
    return {
      result
      for result in self._results.get(picture.name, ())
      if (owner := self.owners[result]) == here or not os.path.lexists(owner)
    }


def source_path(source: pathlib.Path, target: pathlib.Path) -> str:
  """An input's path from the folder of its result, as records have it; links to folders are followed."""
  folder, output = os.path.realpath(source.parent), os.path.realpath(target.parent)
  try:
    return os.path.join(os.path.relpath(folder, output), source.name)
  except ValueError:  # on Windows, another drive
    return os.path.join(folder, source.name)


def _plain(name: str) -> str:
  return unicodedata.normalize("NFC", name).casefold()


def _longest_name(folder: pathlib.Path) -> int:
  there = next((path for path in (folder, *folder.parents) if path.is_dir()), pathlib.Path())
  try:
    return os.pathconf(there, "PC_NAME_MAX")
  except (AttributeError, OSError, ValueError):  # not on Windows
    return _MOST_BYTES


def _real(path: pathlib.Path) -> pathlib.Path:
  """The path without links. `Path.resolve` refuses a link that leads to itself, and with it all other pictures."""
  return pathlib.Path(os.path.realpath(path))
