"""What is known of the results in a folder: which input each was made of, with which settings.

A folder with results has a file `.stablesr.jsonl`, to which a line is added for each of them, before it appears under
its name: a line counts only where the result that it speaks of is there. What a killed process left of a line is no
JSON, and is passed over.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from stablesr_jax.errors import UserError
from stablesr_jax.files import abandoned, lock, sha256, temporary_name

FILE = ".stablesr.jsonl"
# Raise it when the same input, model and settings give another result than before: all are then restored again.
MEANING = 2

# What may belong to an input, by the field of `plan.Job` that has its path, in words.
COMPANIONS = {"pre_cleaned": "pre-cleaned picture", "reference": "reference"}

Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Stamp:
  """A file's content.

  Attributes:
    size: Its number of bytes.
    modified: When it was written last, in nanoseconds. A file of this size and time is taken for this one unread.
    sha256: Of the content, in hexadecimal digits.
  """

  size: int
  modified: int
  sha256: str

  def fits(self, path: pathlib.Path) -> bool:
    """Whether a file has this content; not if it cannot be read, or is no regular file."""
    try:
      found = path.stat()
      if not path.is_file() or found.st_size != self.size:
        return False
      return found.st_mtime_ns == self.modified or sha256(path) == self.sha256
    except OSError:
      return False


def stamp(path: pathlib.Path) -> Stamp:
  """The stamp of a file.

  Raises:
    OSError: It cannot be read.
  """
  found = path.stat()
  return Stamp(found.st_size, found.st_mtime_ns, sha256(path))


@dataclasses.dataclass(frozen=True)
class Record:
  """How a result was made.

  Attributes:
    result: Its name in the folder.
    output: Its content.
    source: The input's path from the folder.
    input: The input's content.
    settings: What it was made with.
    tiles: The number of its diffusion tiles.
    seconds: How long it took to restore it, without reading and writing.
    companions: The contents of what belongs to the input, by the name of `Job`'s field.
  """

  result: str
  output: Stamp
  source: str
  input: Stamp
  settings: Settings
  tiles: int = 0
  seconds: float = 0.0
  companions: Mapping[str, Stamp] = dataclasses.field(default_factory=dict)


class Manifest:
  """The records of one folder, as far as they were read. Threads may share it."""

  def __init__(self, folder: pathlib.Path):
    """
    Raises:
      UserError: The file is there, but cannot be read.
    """
    self.folder = folder
    self._path = folder / FILE
    self._read = 0  # bytes
    self._settings: dict[str, Settings] = {}
    self._records: dict[str, list[Record]] = {}
    self._busy = threading.Lock()
    self.refresh()

  def __iter__(self) -> Iterator[Record]:
    """The newest record of each result."""
    return iter([records[-1] for records in self._records.values()])

  def newest(self, result: str) -> Record | None:
    """The newest record of a result's name, whatever is there now."""
    records = self._records.get(result)
    return records[-1] if records else None

  def matching(self, result: str) -> list[Record]:
    """The records, newest first, that speak of what is there under a result's name; none for what is not ours."""
    return [record for record in reversed(self._records.get(result, [])) if record.output.fits(self.folder / result)]

  def refresh(self) -> None:
    """Reads what was added since it was read last, by whomever."""
    with self._busy:
      try:
        with self._path.open("rb") as file:
          file.seek(self._read)
          data = file.read()
      except (FileNotFoundError, NotADirectoryError):
        return
      except OSError as error:
        raise UserError(f"{self._path}: cannot be read ({error.strerror})") from error
      whole = data.rfind(b"\n") + 1
      self._read += whole
      for line in data[:whole].splitlines():
        self._take(line)

  def add(self, record: Record) -> None:
    """Adds a record, on the disk when this returns.

    Raises:
      OSError: It cannot be written.
    """
    self.refresh()
    digest = hashlib.sha256(json.dumps(record.settings, sort_keys=True).encode()).hexdigest()[:16]
    values = dataclasses.asdict(record) | {"settings": digest}
    lines = [values] if digest in self._settings else [{"digest": digest, "settings": record.settings}, values]
    with self._path.open("a+b") as file:
      lock(file, wait=True)
      end = file.seek(0, os.SEEK_END)
      if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":  # of a process that was killed while it wrote
          file.write(b"\n")
      file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
      file.flush()
      os.fsync(file.fileno())
    self.refresh()

  def _take(self, line: bytes) -> None:
    """What a line says, if it is whole and of a kind that is known."""
    try:
      values = json.loads(line)
      if "digest" in values:
        self._settings[values["digest"]] = dict(values["settings"])
        return
      stamps = {name: Stamp(**values[name]) for name in ("input", "output")}
      companions = {kind: Stamp(**content) for kind, content in values.get("companions", {}).items()}
      own = {"settings": self._settings[values["settings"]], "companions": companions}
      record = Record(**values | stamps | own)
    except (ValueError, TypeError, KeyError, AttributeError):
      return
    if (
      all(_is_typed(value) for value in (record, record.input, record.output, *companions.values()))
      and "/" not in record.result
    ):
      self._records.setdefault(record.result, []).append(record)


def _is_typed(value: Any) -> bool:
  """Whether a dataclass has values of its fields' types, where these are plain."""
  plain = (field for field in dataclasses.fields(value) if field.type in (int, float, str))
  return all(type(getattr(value, field.name)) is field.type for field in plain)


def differences(made: Settings, wanted: Settings) -> list[str]:
  """The settings that differ, each with both values; a wanted precision of "auto" is any."""
  names = [name for name in {**wanted, **made} if made.get(name) != wanted.get(name)]
  return [_difference(name, made.get(name), wanted.get(name)) for name in names if (name, wanted.get(name)) != _ANY]


_ANY = ("precision", "auto")


def _difference(name: str, made: Any, wanted: Any) -> str:
  if name == "model":
    return "another model"
  if name == "pre_clean":
    return "another pre-cleaner, or none"
  if name == "meaning":
    return "another version"
  return f"{name.replace('_', '-')} {made!r}, now {wanted!r}"


def _changed(made: Mapping[str, Stamp], wanted: Mapping[str, pathlib.Path]) -> str:
  """Which of an input's companions is another than a result was made with, in words; empty where none is."""
  for kind in COMPANIONS:
    there = kind in made, kind in wanted
    if any(there) and not (all(there) and made[kind].fits(wanted[kind])):
      return COMPANIONS[kind]
  return ""


@dataclasses.dataclass(frozen=True)
class Judgement:
  """What lies under a result's name.

  Attributes:
    kind: "absent": nothing, or a folder; "current": made of this input with these settings; "stale": made by this
      program otherwise; "foreign": anything else.
    reason: Of what is stale or foreign: why.
  """

  kind: Literal["absent", "current", "stale", "foreign"]
  reason: str = ""


class Results:
  """The results of a run, with the settings that are wanted, in all of their folders. Threads may share it.

  Attributes:
    wanted: The settings; of "precision" also "auto".
  """

  def __init__(self, wanted: Settings):
    self.wanted: Settings = json.loads(json.dumps(wanted))  # as it is read again
    self.manifest = functools.cache(Manifest)

  def judge(self, source: pathlib.Path, target: pathlib.Path, companions: Mapping[str, pathlib.Path] = {}) -> Judgement:
    """What lies at `target`, to be made of `source` and of what belongs to it."""
    if not os.path.lexists(target) or target.is_dir():
      return Judgement("absent")
    manifest = self.manifest(target.parent)
    manifest.refresh()
    if not (records := manifest.matching(target.name)):
      if target.is_file() and not target.stat().st_size:
        return Judgement("foreign", "is empty")
      known = manifest.newest(target.name) is not None
      return Judgement("foreign", "was changed since it was restored" if known else "was not made by this program")
    if not (of_this := [record for record in records if record.input.fits(source)]):
      return Judgement("stale", "made before its input changed")
    changed = [_changed(record.companions, companions) for record in of_this]
    if "" not in changed:
      return Judgement("stale", f"made before its {changed[0]} changed")
    of_this = [record for record, kind in zip(of_this, changed, strict=True) if not kind]
    differing = [differences(record.settings, self.wanted) for record in of_this]
    if [] in differing:
      return Judgement("current")
    return Judgement("stale", f"made with other settings ({'; '.join(differing[0][:3])})")

  def newest(self, target: pathlib.Path) -> Record | None:
    """The newest record of a result, read anew."""
    manifest = self.manifest(target.parent)
    manifest.refresh()
    return manifest.newest(target.name)

  def seconds_of_a_tile(self, folders: set[pathlib.Path]) -> float | None:
    """How long a tile took with these settings, the middle one of the results in some folders; None if unknown."""
    measured = sorted(
      record.seconds / record.tiles
      for folder in folders
      for record in self.manifest(folder)
      if record.tiles and record.seconds > 0 and not differences(record.settings, self.wanted)
    )
    return measured[len(measured) // 2] if measured else None


def clean_up(folder: pathlib.Path) -> None:
  """Ends in a folder what processes that were killed left there: a result that was recorded gets its name, anything
  else that was not finished is removed."""
  manifest: Manifest | None = None
  for left in abandoned(folder):
    manifest = manifest or Manifest(folder)
    manifest.refresh()
    for record in manifest:
      if temporary_name(record.result) == left.path.name and record.output.fits(left.path):
        left.path = folder / record.result
        if not os.path.lexists(left.path) or manifest.matching(record.result):  # nobody else's
          left.place()
        break
