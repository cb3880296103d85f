"""Pictures that belong to the inputs: those cleaned elsewhere that take their places, and references."""

import collections
import dataclasses
import functools
import os
import pathlib

from stablesr_jax.errors import UserError
from stablesr_jax.images import IMAGE_SUFFIXES
from stablesr_jax.inference.manifest import COMPANIONS
from stablesr_jax.inference.plan import Failure, Found, Job


def find_companions(
  found: Found,
  source: pathlib.Path,
  *,
  pre_cleaned: str | os.PathLike | None = None,
  reference: str | os.PathLike | None = None,
) -> Found:
  """Finds for every picture what belongs to it, by its path in the input's folder.

  It has the same name, or the picture's name and another suffix behind it or in the suffix's place. A picture without
  its companion is among the refused. What lies in a companions' folder within the input is no input.

  Args:
    source: The input, a file or a folder.
    pre_cleaned: The folder of the pictures that take the inputs' places, for an input that is no folder a file, too.
    reference: Likewise of the references.

  Raises:
    UserError: A folder or file is not there, or is a file where the input is a folder.
  """
  root = source if source.is_dir() else source.parent
  for kind, place in {"pre_cleaned": pre_cleaned, "reference": reference}.items():
    if place is not None:
      found = _with(found, root, kind, pathlib.Path(place), several=source.is_dir())
  return found


def _with(found: Found, root: pathlib.Path, kind: str, place: pathlib.Path, several: bool) -> Found:
  if not place.exists():
    raise UserError(f"{place}: no such file or folder")
  if not place.is_dir():
    if several:
      raise UserError(f"{place}: is a file, but the input is a folder")
    return dataclasses.replace(found, jobs=tuple(_joined(job, kind, place) for job in found.jobs))
  own, passed = list(found.jobs), collections.Counter[str]()
  if _real(root) in _real(place).parents:
    own = [job for job in own if _real(place) not in _real(job.source).parents]
    passed[f"in the folder of {COMPANIONS[kind]}s"] = len(found.jobs) - len(own)
  jobs, refused, pictures = list[Job](), list[Failure](), functools.cache(_Pictures)
  for job in own:
    if job.content is not None:
      raise UserError(f"{place}: is a folder, but {job.source} has no file name; give a file")
    try:
      path = pictures(place / job.source.parent.relative_to(root)).of(job.source.name, COMPANIONS[kind])
    except UserError as error:
      if not several:
        raise UserError(f"{job.source}: {error}") from error
      refused.append((job, error))
    else:
      jobs.append(_joined(job, kind, path))
  return dataclasses.replace(found, jobs=tuple(jobs), refused=(*found.refused, *refused), passed=found.passed + passed)


def _joined(job: Job, kind: str, path: pathlib.Path) -> Job:
  if _real(path) == _real(job.target):
    raise UserError(f"{job.target}: would replace the {COMPANIONS[kind]}; choose another output")
  return dataclasses.replace(job, **{kind: path})


class _Pictures:
  """The pictures in a folder, by their names."""

  def __init__(self, folder: pathlib.Path):
    self._folder, self._stems = folder, collections.defaultdict[str, list[str]](list)
    try:
      names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
      names = []
    self._names = {name for name in names if pathlib.Path(name).suffix.lower() in IMAGE_SUFFIXES}
    for name in names:
      if name in self._names and not name.startswith("."):
        self._stems[pathlib.Path(name).stem].append(name)

  def of(self, name: str, what: str) -> pathlib.Path:
    """The one that belongs to a picture of this name.

    Raises:
      UserError: There is none, or more than one; `what` says what it is.
    """
    stem = pathlib.Path(name).stem
    if name in self._names:
      return self._folder / name
    matching = self._stems.get(name) or self._stems.get(stem) or []
    if len(matching) == 1:
      return self._folder / matching[0]
    if matching:
      raise UserError(f"its {what} may be any of {', '.join(matching[:3])} in {self._folder}")
    raise UserError(f"has no {what}: there is no {stem} with an image's suffix in {self._folder}")


def _real(path: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(os.path.realpath(path))
