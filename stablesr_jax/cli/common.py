"""What the command lines share: one-line errors."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro

Arguments = TypeVar("Arguments")

BAD_INPUT = 2  # the exit code for anything that the user can mend


def parse(cls: type[Arguments], argv: Sequence[str] | None, prog: str) -> Arguments:
  """The dataclass `cls` from the command line. A wrong flag or value ends the program with one line and exit code 2."""
  shown = io.StringIO()
  try:
    with contextlib.redirect_stderr(shown):
      return tyro.cli(cls, args=argv, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
  except SystemExit as stop:
    if stop.code != BAD_INPUT:
      raise
    # tyro draws a box for people; one line serves them and scripts.
    lines = [line.strip("│ ") for line in shown.getvalue().splitlines() if line[:1] not in "╭╰"]
    text = " ".join("; " if set(line) == {"─"} else line for line in lines).partition("For full helptext")[0]
    text = " ".join(text.split()).replace(" ;", ";").strip("; ")
    fail(prog, text)


def run(prog: str, main: Callable[[], int]) -> int:
  """Calls `main`; an error that the user can mend becomes one line and exit code 2."""
  try:
    return main()
  except (ValueError, OSError) as error:
    if os.environ.get("STABLESR_TRACEBACK"):
      raise
    fail(prog, " ".join(str(error).split()))
  except KeyboardInterrupt:
    print(f"{prog}: stopped", file=sys.stderr)
    return 130


def fail(prog: str, message: str) -> NoReturn:
  """Ends the program with a one-line error."""
  print(f"{prog}: error: {message}", file=sys.stderr)
  raise SystemExit(BAD_INPUT)
