"""Several processes that restore one folder together: which pictures are whose, and what became of all.

Each restores its own pictures on its own devices and waits for nobody, so that one that dies loses only its own. They
know of each other by a file each in a folder beside the results, which is locked for as long as its process lives.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import TextIO

from stablesr_jax.errors import UserError
from stablesr_jax.files import lock, make_folder

_FOLDER = ".stablesr_processes"
# Processes that were started together may be that far apart.
_SECONDS_TO_START = 120.0
# The number of a process and of all of them, for what starts several.
_CLUSTERS = (("SLURM_PROCID", "SLURM_NTASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))


@dataclasses.dataclass(frozen=True)
class Place:
  """Which of several processes this is: the number `process`, from 0, of `processes`."""

  process: int = 0
  processes: int = 1


def find_place(processes: int | None = None, process: int | None = None) -> Place:
  """The place that is given, or that Slurm, Open MPI or a TPU pod gives this process.

  Raises:
    UserError: Only one of the numbers is given, or they do not fit each other.
  """
  if (processes is None) != (process is None):
    raise UserError("processes and process: give both or none")
  if processes is None or process is None:
    process, processes = _place_in_cluster()
  if processes < 1:
    raise UserError(f"processes {processes}: must be at least 1")
  if not 0 <= process < processes:
    raise UserError(f"process {process}: must be 0 to processes - 1 ({processes - 1})")
  return Place(process, processes)


def _place_in_cluster() -> tuple[int, int]:
  try:
    for number, count in _CLUSTERS:
      if number in os.environ and count in os.environ:
        return int(os.environ[number]), int(os.environ[count])
    if "," in (hosts := os.environ.get("TPU_WORKER_HOSTNAMES", "")):
      return int(os.environ["TPU_WORKER_ID"]), hosts.count(",") + 1
  except (ValueError, KeyError) as error:
    raise UserError(f"which process this is cannot be found out ({error}); give --processes and --process") from error
  return 0, 1


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a process's pictures: how many were restored, and how many could not be."""

  restored: int
  failed: int


class Together:
  """This process among those that write to one folder.

  with together(folder, place) as processes:
    ...
    processes.finish(Outcome(restored=10, failed=0))
    everybody = processes.outcomes()
  """

  def __init__(self, folder: pathlib.Path, place: Place, own: TextIO):
    self._folder, self._place, self._own = folder, place, own

  def finish(self, outcome: Outcome) -> None:
    """Lets the first process know."""
    json.dump(dataclasses.asdict(outcome), self._own)
    self._own.flush()

  def outcomes(self) -> list[Outcome | None]:
    """What became of the others' pictures, in their order, once they have ended; None for one that ended early, or that
    was not seen within two minutes. The first process calls it when it has finished."""
    return [self._outcome(number) for number in range(1, self._place.processes)]

  def _outcome(self, number: int) -> Outcome | None:
    file, deadline = _file(self._folder, number), time.monotonic() + _SECONDS_TO_START
    while not file.exists():
      if time.monotonic() > deadline:
        return None
      time.sleep(0.2)
    with file.open() as theirs:
      lock(theirs, wait=True)
      text = theirs.read()
    return Outcome(**json.loads(text)) if text else None


@contextlib.contextmanager
def together(output: pathlib.Path, place: Place) -> Iterator[Together]:
  """Makes this process known to the others that write to the folder `output`; the first one cleans up at the end.

  Raises:
    UserError: The folder cannot be made, or such a process runs already.
  """
  folder = output / _FOLDER
  make_folder(folder)
  file = _file(folder, place.process)
  with file.open("a+") as own:
    if not lock(own, wait=False):
      raise UserError(f"{output}: process {place.process} of {place.processes} is running already")
    own.truncate(0)  # only now: it may have been another's
    try:
      yield Together(folder, place, own)
    finally:
      if place.process == 0:
        shutil.rmtree(folder, ignore_errors=True)


def _file(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / f"{number}.json"
