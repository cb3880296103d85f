"""What tells one stored model from another."""

import hashlib
import os
import pathlib

_WHOLE = 2**20  # bytes up to which a file is read in full
_PART = 2**16


def model_digest(folder: str | os.PathLike) -> str:
  """A digest of a converted model's folder: 16 hexadecimal digits, the same for every copy of it.

  Small files count in full, large ones with their size, beginning and end: a checkpoint names its files of arrays by
  random numbers, so that no two writings are alike even where the arrays' middle alone differs.

  Raises:
    OSError: it cannot be read.
  """
  folder, digest = pathlib.Path(folder), hashlib.sha256()
  for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    size = path.stat().st_size
    digest.update(f"{path.relative_to(folder).as_posix()}\n{size}\n".encode(errors="surrogateescape"))
    with path.open("rb") as file:
      if size <= _WHOLE:
        digest.update(file.read())
      else:
        digest.update(file.read(_PART))
        file.seek(-_PART, os.SEEK_END)
        digest.update(file.read())
  return digest.hexdigest()[:16]
