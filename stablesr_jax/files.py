"""Files that appear whole or not at all, that one process alone writes, and the folders they go to."""

import contextlib
import hashlib
import os
import pathlib
import tempfile
import time
import uuid
from collections.abc import Iterator
from typing import IO

from stablesr_jax.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary path beside `path`; when the block ends, what was written there takes the place of `path`.

  If the block raises, the temporary file is removed and an older file at `path` stays as it was. The caller sees the
  block's error, whatever happens while cleaning up.

  Raises:
    OSError: the file cannot be put in place.
  """
  path = pathlib.Path(path)
  # A dot in front and another suffix: not taken for a result if a crash leaves it behind. Without the file's own name,
  # which may be as long as the file system allows.
  temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
  try:
    yield temporary
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    raise


def lock(file: IO, wait: bool) -> bool:
  """Locks a file until it is closed, or its process ends; False if another process has, and that is not waited for.

  Where there are no locks (Windows, some network file systems) every file is taken for a free one.
  """
  try:
    import fcntl  # Late: not on Windows, where pictures can be restored all the same.
  except ImportError:
    return True
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    return False
  except OSError:  # Not all file systems have locks.
    pass
  return True


def open_locked(path: pathlib.Path, seconds: float = 0.1) -> IO[bytes] | None:
  """Opens a file, which is made where it is not there, to read and write it, and locks it.

  Returns None if another process has it locked and does not let go of it in so many seconds: for a moment others do,
  to see whether it is locked.

  Raises:
    OSError: it cannot be opened, or is a link.
  """
  deadline = time.monotonic() + seconds
  while True:
    number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)
    file = os.fdopen(number, "r+b")
    with contextlib.suppress(FileNotFoundError):
      # Whoever had it locked may have removed or renamed it since it was opened: then it is another file that counts.
      if lock(file, wait=False) and os.path.samestat(os.fstat(number), os.lstat(path)):
        return file
    file.close()
    if time.monotonic() > deadline:
      return None
    time.sleep(0.01)


class Claim:
  """The right to write a file, which one process has at a time, for as long as it lives; `claim` gives it.

  Attributes:
    path: The file.
    temporary: Where to write it: a file beside it that is there and empty, and locked.
  """

  def __init__(self, path: pathlib.Path, temporary: pathlib.Path, file: IO[bytes]):
    self.path, self.temporary, self._file = path, temporary, file

  def place(self) -> None:
    """Puts what was written in the place of `path`; the claim ends with it."""
    if os.name == "nt":  # There an open file cannot be renamed.
      self._file.close()
    os.replace(self.temporary, self.path)
    self._file.close()

  def drop(self) -> None:
    """Gives the claim up, if it has not ended; what was written is removed."""
    if not self._file.closed:
      with contextlib.suppress(OSError):
        self.temporary.unlink(missing_ok=True)
      self._file.close()


def claim(path: pathlib.Path) -> Claim | None:
  """Claims a file; None if another process, or another claim of this one, has it.

  The folder must exist. What a dead process left of an earlier claim is dropped.
  """
  temporary = path.with_name(temporary_name(path.name))
  file = open_locked(temporary)
  if file is None:
    return None
  file.truncate()
  return Claim(path, temporary, file)


_BEGINNING, _END = ".stablesr-", ".tmp"


def temporary_name(name: str) -> str:
  """What a file of this name is called while it is written: one name for it alone, of 46 letters, hidden."""
  return f"{_BEGINNING}{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}{_END}"


def is_temporary(name: str) -> bool:
  """Whether a file's name is one that `temporary_name` gives."""
  return name.startswith(_BEGINNING) and name.endswith(_END)


def abandoned(folder: pathlib.Path) -> Iterator[Claim]:
  """The claims in a folder of processes that are dead, one after the other; `path` is the temporary file's own.

  What was written is still there. A claim is dropped when the next one is asked for, unless `place` ended it.
  """
  try:
    names = [entry.name for entry in os.scandir(folder) if is_temporary(entry.name)]
  except OSError:
    return
  for name in names:
    temporary = folder / name
    try:
      file = open_locked(temporary, seconds=0)
    except OSError:
      continue
    if file is not None:
      left = Claim(temporary, temporary, file)
      try:
        yield left
      finally:
        left.drop()


def sha256(path: pathlib.Path) -> str:
  """The SHA-256 of a file's content, in hexadecimal digits. Raises OSError if it cannot be read."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(folder: pathlib.Path) -> None:
  """Makes a folder and those above it, where they are not there yet.

  Raises:
    UserError: one of them is a file.
    OSError: the system refuses it.
  """
  _nearest(folder)
  folder.mkdir(parents=True, exist_ok=True)


def require_writable(folder: pathlib.Path) -> None:
  """Checks, by making a file that is gone at once, that files can be made in a folder, or in the nearest one above it
  where it is not there yet.

  Raises:
    UserError: they cannot.
  """
  there = _nearest(folder)
  try:
    with tempfile.TemporaryFile(dir=there):
      pass
  except OSError as error:
    raise UserError(f"{there}: cannot be written to ({error.strerror})") from error


def _nearest(folder: pathlib.Path) -> pathlib.Path:
  """The folder itself, or the nearest one above it that is there."""
  there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
  if there.exists() and not there.is_dir():
    raise UserError(f"{there}: is a file, not a folder")
  return there
