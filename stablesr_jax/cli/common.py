"""What the command lines share: one-line errors, the compile cache."""

import contextlib
import io
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import platformdirs
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
  except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
    if os.environ.get("STABLESR_TRACEBACK"):
      raise
    fail(prog, " ".join(str(error).split()))
  except KeyboardInterrupt:
    print(f"{prog}: stopped", file=sys.stderr)
    return 130


def fail(prog: str, message: str):
  """Ends the program with a one-line error."""
  print(f"{prog}: error: {message}", file=sys.stderr)
  raise SystemExit(BAD_INPUT)


def enable_compile_cache(setting: str) -> None:
  """Keeps compiled programs from run to run.

  Args:
    setting: a folder; "auto" is one in the user's cache directory, "off" keeps nothing.
  """
  import jax

  if setting == "off":
    return
  folder = pathlib.Path(platformdirs.user_cache_dir("stablesr_jax")) / "xla" if setting == "auto" else setting
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
