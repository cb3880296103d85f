"""The command lines. What they need is imported when one is called."""

import importlib
import sys
from collections.abc import Sequence

from stablesr_jax.interrupts import INTERRUPTED, stoppable


def start(command: str, prog: str, argv: Sequence[str] | None = None) -> int:
  """Runs one of the command lines and returns its exit code; Ctrl-C is a line while it is imported, too.

  Args:
    command: The name of its module.
    prog: How it is called, for messages.
    argv: The arguments; None takes the process's own.
  """
  try:
    with stoppable():
      return importlib.import_module(f"stablesr_jax.cli.{command}").main(argv, prog)
  except KeyboardInterrupt:
    print(f"{prog}: stopped", file=sys.stderr)
    return INTERRUPTED
