"""The command `stablesr`: one program for all command lines."""

import importlib
import sys
from collections.abc import Sequence

from stablesr_jax import __version__
from stablesr_jax.cli.common import fail

_COMMANDS = {
  "infer": "restore photographs",
  "train": "train a stage, by a recipe",
  "convert": "convert published weights into a model folder, and back",
  "pack": "pack training images into one file",
}


def main(argv: Sequence[str] | None = None, prog: str = "stablesr") -> int:
  command, *rest = [*(sys.argv[1:] if argv is None else argv)] or [""]
  if command in ("-h", "--help"):
    print(f"usage: {prog} COMMAND ...\n")
    for name, does in _COMMANDS.items():
      print(f"  {name:<9} {does}")
    print(f"\n{prog} COMMAND --help says more; {prog} --version says which version this is.")
    return 0
  if command == "--version":
    print(__version__)
    return 0
  if command not in _COMMANDS:
    found = f"{command}: no such command; choose" if command else "choose a command:"
    fail(prog, f"{found} {', '.join(_COMMANDS)} (--help says more)")
  return importlib.import_module(f"stablesr_jax.cli.{command}").main(rest, f"{prog} {command}")
