"""What the command lines share: how they are parsed, and how errors are told."""

import contextlib
import errno
import inspect
import io
import os
import platform
import re
import sys
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from stablesr_jax import __version__
from stablesr_jax.errors import UserError, is_out_of_memory, system_errno
from stablesr_jax.interrupts import INTERRUPTED, stoppable

Arguments = TypeVar("Arguments")

# Exit codes.
BUG = 1
BAD_INPUT = 2  # anything that a person can mend

# What files, disks and networks can be like without anything being wrong with this program.
_SURROUNDINGS = {
  getattr(errno, name, None)
  for name in (
    "EACCES EPERM EROFS ENOENT EEXIST ENOTDIR EISDIR ENOTEMPTY ENOSPC EDQUOT EFBIG EIO ENAMETOOLONG ELOOP EMFILE "
    "ENFILE EBUSY ESTALE EXDEV EPIPE ENODEV ENXIO ENOMEM ETIMEDOUT ECONNREFUSED ECONNRESET ENETUNREACH "
    "EHOSTUNREACH"
  ).split()
} - {None}


def parse(cls: type[Arguments], argv: Sequence[str] | None, prog: str) -> Arguments:
  """Returns the dataclass `cls` from the command line; a wrong flag or value ends the program with one line and code 2.

  Args:
    cls: The dataclass; its docstring is the description, in which `{prog}` stands for how the program is called.
    argv: The arguments; None takes the process's own.
    prog: The program's name in messages.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  _check_flags(argv, prog)
  command = prog if " " in prog else f"python {prog}"
  description = (inspect.getdoc(cls) or "").replace("{prog}", command)
  out, err = io.StringIO(), io.StringIO()
  with contextlib.ExitStack() as stack:
    if not {"-h", "--help"} & set(argv):
      # tyro tells errors in a box, drawn with the colours and the characters that standard output can show. What is no
      # terminal gets neither, only a title and paragraphs between rules; one line serves people and scripts.
      stack.enter_context(contextlib.redirect_stdout(out))
      stack.enter_context(contextlib.redirect_stderr(err))
    try:
      return tyro.cli(cls, args=argv, prog=prog, description=description, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
      if stop.code != BAD_INPUT:
        stack.close()
        print(out.getvalue(), end="")
        raise
  title, *paragraphs = re.split(r"^ *-{3,} *$", err.getvalue(), flags=re.MULTILINE)
  told = [" ".join(text.split()) for text in paragraphs or [title]]
  fail(prog, "; ".join(text for text in told if text and not text.startswith("For full helptext")))


def _check_flags(argv: Sequence[str], prog: str) -> None:
  """Ends the program where a flag is given twice, of which the last would win in silence, or an empty value, which as a
  path would be the current folder. Only prompts may be empty."""
  given, flag = set(), ""
  for argument in argv:
    empty = not argument
    if argument.startswith("--"):
      flag, equals, value = argument.partition("=")
      flag, empty = flag.replace("_", "-"), bool(equals) and not value
      if flag in given:
        fail(prog, f"{flag}: is given twice")
      given.add(flag)
    if empty and not flag.endswith("prompt"):
      fail(prog, f"{flag or 'an argument'}: must not be empty")


def run(prog: str, main: Callable[[], int], *, out_of_memory: str = "") -> int:
  """Calls `main` and returns its exit code; an error is told, and ends the program with `tell`'s exit code.

  Ctrl-C is told in a line, and the next one ends the program at once. Where the reader of standard output has gone
  away, what was for it is dropped in silence, as `head` expects.
  """
  if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have what it cannot show
  # None, where the program was started without one; `print` then takes the other.
  output, errors = StandardOutput(sys.stdout or io.StringIO()), sys.stderr or io.StringIO()
  with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
    try:
      with stoppable():
        code = main()
    except KeyboardInterrupt as stop:
      print(f"{prog}: stopped{f' {stop}' if stop.args else ''}", file=sys.stderr)
      code = INTERRUPTED
    except SystemExit as stop:  # of `parse`: the help, or what is wrong with a flag
      raise SystemExit(stop.code or output.close(prog)) from stop
    except Exception as error:
      code = tell(prog, error, out_of_memory=out_of_memory)
      output.close(prog)
      raise SystemExit(code) from error
  return code or output.close(prog)


class StandardOutput:
  """Standard output; that nobody can get what is written is no reason to stop."""

  def __init__(self, stream: Any):
    self._stream = stream
    self._error: OSError | None = None

  def write(self, text: str) -> int:
    self._unless_lost(lambda: self._stream.write(text))
    return len(text)

  def write_bytes(self, content: bytes) -> None:
    """Writes what is no text.

    Raises:
      UserError: The program was started without a standard output.
    """
    self.require_binary()
    self._unless_lost(lambda: self._stream.buffer.write(content))

  def require_binary(self) -> None:
    """Raises UserError where there is nothing to write bytes to."""
    if not hasattr(self._stream, "buffer"):
      raise UserError("standard output is closed")

  def flush(self) -> None:
    self._unless_lost(self._stream.flush)

  def close(self, prog: str) -> int:
    """Writes out what is left, tells if it could not be written, and returns the exit code for that."""
    self.flush()
    if self._error is None:
      return 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # or Python tries and fails once more at the end
    if isinstance(self._error, BrokenPipeError):
      return 0
    print(f"{prog}: error: standard output cannot be written ({self._error.strerror})", file=sys.stderr)
    return BAD_INPUT

  def _unless_lost(self, act: Callable[[], object]) -> None:
    try:
      if self._error is None:
        act()
    except OSError as error:
      self._error = error

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def tell(prog: str, error: Exception, *, subject: str = "", out_of_memory: str = "") -> int:
  """Tells on standard error what went wrong, and returns the exit code for it.

  What a person can mend is one line, behind the traceback with all causes if STABLESR_TRACEBACK is set. Anything else
  is a bug: its traceback, and what to do with it.

  Args:
    subject: The file that it went wrong with, if the message may not name it.
    out_of_memory: What helps against that.
  """
  line = explain(error, out_of_memory)
  if line is None or os.environ.get("STABLESR_TRACEBACK"):
    traceback.print_exception(error)
  about = f"{shown(subject)}: " if subject else ""
  if line is not None:
    print(f"{prog}: error: {about}{line.removeprefix(about).removeprefix(f'{subject}: ')}", file=sys.stderr)
    return BAD_INPUT
  print(
    f"{prog}: {about}this is a bug in stablesr_jax and no mistake of yours: please report it in the project's issue "
    f"tracker, with the command, the lines above, and: {_versions()}",
    file=sys.stderr,
  )
  return BUG


def explain(error: Exception, out_of_memory: str = "") -> str | None:
  """What went wrong, in one line, if a person can mend it; None for a bug."""
  if is_out_of_memory(error):
    return "out of memory" + (f"; {out_of_memory}" if out_of_memory else "")
  if isinstance(error, ValueError) and (setting := _refused_by_jax(str(error))):
    return setting
  if isinstance(error, UserError):
    return re.sub(r"[ \t]*\n\s*", " ", str(error)).strip()
  if (number := system_errno(error)) in _SURROUNDINGS and number is not None:
    if isinstance(error, OSError):
      file = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    else:
      named = re.search(r'local file "([^"]+)"', str(error))
      file = named[1] if named else ""
    return (f"{file}: " if file else "") + os.strerror(number)
  return None


def _refused_by_jax(message: str) -> str | None:
  """What JAX says when it is imported of an environment variable with a wrong value, with that variable's name."""
  named = re.search(r"invalid (?:truth )?value .*\b(jax_\w+)", message, flags=re.IGNORECASE)
  name = named[1].upper() if named else ""
  return f"{name}={os.environ[name]}: JAX does not take this value" if name in os.environ else None


def warn(prog: str, message: str) -> None:
  """Tells on standard error what is not as it should be, but does not keep the program from its work."""
  print(f"{prog}: warning: {message}", file=sys.stderr)


def shown(name: object) -> str:
  """A file's name on one line: line breaks and other control characters as escapes."""
  return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in str(name))


def fail(prog: str, message: str) -> NoReturn:
  """Ends the program with a one-line error."""
  print(f"{prog}: error: {message}", file=sys.stderr)
  raise SystemExit(BAD_INPUT)


def _versions() -> str:
  jax = getattr(sys.modules.get("jax"), "__version__", "not imported")
  return f"stablesr_jax {__version__}, jax {jax}, Python {platform.python_version()}, {platform.platform()}"
