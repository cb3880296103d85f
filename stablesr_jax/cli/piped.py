"""Pictures that come through a pipe."""

import pathlib
import stat
import sys

from stablesr_jax.errors import UserError
from stablesr_jax.images import WRITABLE_SUFFIXES, Output, decode_image
from stablesr_jax.inference.plan import Found, Job

# Where the system shows the files that the program was started with, <(...) among them.
_OPEN_FILES = ("/dev", "/dev/fd", "/proc/self/fd")


def is_piped(given: str) -> bool:
  """Whether an input is standard input (-) or another pipe."""
  return given == "-" or _is_pipe(pathlib.Path(given))


def read_piped(given: str, output: pathlib.Path, written: Output) -> Found:
  """Reads the one picture of a pipe.

  Raises:
    UserError: It is no picture, the pipe has a name of its own or is a terminal, or the output is no file.
  """
  source = pathlib.Path(given)
  name = "standard input" if given == "-" else given
  if given == "-" and sys.stdin is None:
    raise UserError("--input -: standard input is closed")
  if given == "-" and sys.stdin.isatty():
    raise UserError("--input -: standard input is a terminal; send a picture to it (... < photo.jpg)")
  if given != "-" and str(source.parent) not in _OPEN_FILES:
    raise UserError(f"{given}: is neither a regular file nor a folder, but a pipe (--input - < {given} reads it)")
  if output.is_dir() or output.suffix.lower() not in WRITABLE_SUFFIXES:
    raise UserError(f"{output}: {name} has no file name to call a result by; give a file (.png, .jpg, ...) or -")
  written.require_suits(output)
  content = sys.stdin.buffer.read() if given == "-" else source.read_bytes()
  decode_image(content, name)
  return Found((Job(pathlib.Path(name), output, name, content),), recorded=False)


def _is_pipe(path: pathlib.Path) -> bool:
  try:
    kind = path.stat().st_mode
  except OSError:
    return False
  return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)
