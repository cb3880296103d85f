"""Files that appear whole or not at all, and the folders they go to."""

import contextlib
import os
import pathlib
import tempfile
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


def lock(file: IO[str], wait: bool) -> bool:
  """Locks a file until it is closed, or its process ends; False if another process has, and that is not waited for."""
  import fcntl  # Late: not on Windows, where pictures can be restored all the same.

  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError:
    return False
  except OSError:  # Not all file systems have locks.
    pass
  return True


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
