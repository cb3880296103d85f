"""Several processes that restore one folder together: which pictures are whose, and what became of all.

Each restores its own pictures on its own devices and waits for nobody, so that one that dies loses only its own. They
know of each other by a file each in a folder beside the results, which is locked for as long as its process lives.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from stablesr_jax.errors import UserError
from stablesr_jax.files import lock, make_folder, open_locked, require_writable

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
  """What became of a process's pictures: how many were restored, and how many could not be.

  Attributes:
    fault: Why that is not known, "ended early" or "was not started"; empty if it is.
  """

  restored: int = 0
  failed: int = 0
  fault: str = ""


class Together:
  """This process among those that write to one folder.

  with together(folder, place) as processes:
    ...
    processes.finish(Outcome(restored=10, failed=0))
    everybody = processes.outcomes(print)
  """

  def __init__(self, folder: pathlib.Path, place: Place, own: IO[bytes]):
    self._folder, self._place, self._own = folder, place, own
    self._began = time.time()
    self._note(None)

  def finish(self, outcome: Outcome) -> None:
    """Lets the first process know."""
    self._note(outcome)

  def outcomes(self, tell: Callable[[str], object]) -> list[Outcome]:
    """What became of the others' pictures, in their order, once they have ended. The first process calls it when it has
    finished; one that is not seen within two minutes was not started. `tell` is called with what is waited for."""
    deadline = time.monotonic() + _SECONDS_TO_START
    return [self._outcome(number, deadline, tell) for number in range(1, self._place.processes)]

  def _note(self, outcome: Outcome | None) -> None:
    known = {"processes": self._place.processes, "began": self._began}
    self._own.seek(0)
    self._own.truncate()
    self._own.write(json.dumps(known | {"outcome": outcome and dataclasses.asdict(outcome)}).encode())
    self._own.flush()

  def _outcome(self, number: int, deadline: float, tell: Callable[[str], object]) -> Outcome:
    file, told = _file(self._folder, number), False
    while True:
      if file.exists():
        with file.open() as theirs:
          ended, note = lock(theirs, wait=False), _read(theirs)
        if ended and note is not None and self._is_ours(note):
          return Outcome(**note["outcome"]) if note["outcome"] else Outcome(fault="ended early")
        running = not ended
      else:
        running = False
      if not running and time.monotonic() > deadline:
        return Outcome(fault="was not started")
      if not told:
        tell(f"waiting for process {number} of {self._place.processes}")
        told = True
      time.sleep(0.2)

  def _is_ours(self, note: dict[str, Any]) -> bool:
    """Whether it was not left behind by an earlier run."""
    return note["processes"] == self._place.processes and note["began"] > self._began - _SECONDS_TO_START


@contextlib.contextmanager
def together(output: pathlib.Path, place: Place) -> Iterator[Together]:
  """Makes this process known to the others that write to the folder `output`; the first one cleans up at the end.

  Raises:
    UserError: The folder cannot be made, such a process runs already, or one of another number of processes.
  """
  folder = output / _FOLDER
  require_writable(output)
  make_folder(folder)
  for file in folder.glob("*.json"):
    with file.open() as theirs:
      ended, note = lock(theirs, wait=False), _read(theirs)
    if not ended and note is not None and note["processes"] != place.processes:
      raise UserError(f"{output}: a run of {note['processes']} processes is at work there, not of {place.processes}")
  own = _open_own(folder, place.process)
  if own is None:
    raise UserError(f"{output}: process {place.process} of {place.processes} is running already")
  with own:
    try:
      yield Together(folder, place, own)
    finally:
      if place.process == 0:
        _clean_up(folder)


def _open_own(folder: pathlib.Path, process: int) -> IO[bytes] | None:
  """This process's file, locked; None if another has it. The folder may be removed meanwhile by one that ends."""
  while True:
    make_folder(folder)
    try:
      return open_locked(_file(folder, process), seconds=2)
    except FileNotFoundError:
      continue


def _clean_up(folder: pathlib.Path) -> None:
  """Removes the files of processes that are no more, and this one's; those that still run keep theirs."""
  for file in folder.glob("*.json"):
    with contextlib.suppress(OSError), file.open() as theirs:
      if file.name == _file(folder, 0).name or lock(theirs, wait=False):
        file.unlink()
  with contextlib.suppress(OSError):  # not empty
    folder.rmdir()


def _read(file: IO) -> dict[str, Any] | None:
  """What a process noted; None if it has not yet, or was killed meanwhile."""
  try:
    return json.loads(file.read())
  except ValueError:
    return None


def _file(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / f"{number}.json"
