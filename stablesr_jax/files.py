"""Files that appear whole or not at all."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator


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
