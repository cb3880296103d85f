"""The command `stablesr`: one program for all command lines."""

import sys
from collections.abc import Sequence

from stablesr_jax import __version__
from stablesr_jax.cli import start
from stablesr_jax.errors import UserError

_COMMANDS = {
  "infer": "restore photographs",
  "train": "train a stage, by a recipe",
  "convert": "convert published weights into a model folder, and back",
  "pack": "pack training images into one file",
}


def main(argv: Sequence[str] | None = None, prog: str = "stablesr") -> int:
  command, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
  if command in _COMMANDS:
    return start(command, f"{prog} {command}", rest)
  from stablesr_jax.cli.common import run  # Late: Ctrl-C is told in a line from `start` on.

  return run(prog, lambda: _main(command, prog))


def _main(command: str, prog: str) -> int:
  if command in ("-h", "--help"):
    print(f"usage: {prog} COMMAND ...\n")
    for name, does in _COMMANDS.items():
      print(f"  {name:<9} {does}")
    print(f"\n{prog} COMMAND --help says more; {prog} --version says which version this is.")
    return 0
  if command == "--version":
    print(__version__)
    return 0
  found = f"{command}: no such command; choose" if command else "choose a command:"
  raise UserError(f"{found} {', '.join(_COMMANDS)} (--help says more)")
