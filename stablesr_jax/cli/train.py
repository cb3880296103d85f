"""The command line of `train.py`."""

import dataclasses
import functools
import importlib.util
import inspect
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from stablesr_jax.cli.common import parse, run, warn
from stablesr_jax.errors import UserError, first_line

_RECIPES = pathlib.Path(__file__).resolve().parents[1] / "recipes"  # in a clone, a link to configs/
_STOPPED = 75  # EX_TEMPFAIL: run it again
_OUT_OF_MEMORY = "try a smaller --batch-size, or a larger --optimizer.accumulation"


@dataclasses.dataclass(frozen=True)
class _Run:
  """Where a run is kept, and how its processes find each other."""

  workdir: pathlib.Path
  """the run's folder: checkpoints, metrics, samples, and at the end the model; an earlier run there goes on"""
  export_only: bool = False
  """train nothing; write the model as of the last checkpoint"""
  coordinator: str | None = None
  """address HOST:PORT of the first of several processes; not needed under Slurm, Open MPI or on TPU pods"""
  processes: int | None = None
  """number of processes"""
  process: int | None = None
  """number of this process, from 0"""
  compile_cache: str = "auto"
  """where compiled programs are kept from run to run: auto (the user's cache directory), off, or a folder"""


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
  argv = list(sys.argv[1:] if argv is None else argv)
  return run(prog, lambda: _main(argv, prog), out_of_memory=_OUT_OF_MEMORY)


def _main(argv: list[str], prog: str) -> int:
  path, rest = _take_config(argv)
  if path is None:
    if not {"-h", "--help"} & set(argv):
      raise UserError("--config: name a file of configs/, say configs/stablesr_512.py")
    print(f"usage: {prog} --config NAME|FILE.py --workdir DIR [--FIELD VALUE ...]")
    print(f"All fields of a config: {prog} --config NAME|FILE.py --help")
    return 0
  arguments = _arguments_of(load_config(path))
  given: Any = parse(arguments, rest, prog)

  from stablesr_jax.compilation import enable_cache
  from stablesr_jax.parallel import connect, start_devices
  from stablesr_jax.training.config import CfwDataStage

  connect(given.run.coordinator, given.run.processes, given.run.process)
  start_devices()
  enable_cache(given.run.compile_cache, functools.partial(warn, prog))
  if isinstance(given.config.stage, CfwDataStage):
    from stablesr_jax.training.make_cfw_set import make_cfw_set

    if given.run.export_only:
      raise UserError("--export-only: this stage makes data and no model")
    return 0 if make_cfw_set(given.config, given.run.workdir) else _STOPPED
  from stablesr_jax.training.loop import train

  return 0 if train(given.config, given.run.workdir, export_only=given.run.export_only) else _STOPPED


def _take_config(argv: list[str]) -> tuple[pathlib.Path | None, list[str]]:
  """The value of --config, if it is given, and the other arguments: it says what the others can be.

  Raises:
    UserError: It is given twice, or is empty.
  """
  given, rest, arguments = [], [], iter(argv)
  for argument in arguments:
    flag, equals, value = argument.partition("=")
    if flag == "--config":
      given.append(value if equals else next(arguments, None))
    else:
      rest.append(argument)
  if len(given) > 1:
    raise UserError("--config: is given twice")
  if "" in given:
    raise UserError("--config: must not be empty")
  return (pathlib.Path(given[0]) if given and given[0] is not None else None), rest


def load_config(name: pathlib.Path) -> Any:
  """What `get_config()` of a Python file returns. The file is a program: it is run.

  Args:
    name: A file, or the bare name of a recipe that is installed with this package.

  Raises:
    UserError: There is no such file or recipe, it fails, or it has no such function.
  """
  from stablesr_jax.training.config import TrainConfig

  bare = name.parent == pathlib.Path() and not name.is_file()
  path = _RECIPES / f"{name}.py" if bare else name
  if not path.is_file():
    known = ", ".join(sorted(recipe.stem for recipe in _RECIPES.glob("[a-z]*.py")))
    raise UserError(f"{name}: no such config file, and no recipe (recipes: {known})")
  spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
  if spec is None or spec.loader is None:
    raise UserError(f"{path}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    config = get_config and get_config()
    if inspect.iscoroutine(config):
      config.close()  # or Python warns that nobody awaited it
  except (Exception, SystemExit) as error:  # It may do anything.
    raise UserError(_recipe_error(path, error)) from error
  if get_config is None:
    raise UserError(f"{path}: has no get_config()")
  if not isinstance(config, TrainConfig):
    raise UserError(f"{path}: get_config() must return a TrainConfig, not {type(config).__name__}")
  return config


def _recipe_error(path: pathlib.Path, error: BaseException) -> str:
  """One line for an error in a recipe: where in it, or in another of the same folder, and what."""
  frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_beside(frame.filename, path)]
  where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else str(path)
  if isinstance(error, SyntaxError) and error.filename:
    return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
  if isinstance(error, UserError):
    return f"{where}: {error}"
  return f"{where}: {type(error).__name__}: {first_line(error)}"


def _is_beside(filename: str, path: pathlib.Path) -> bool:
  return pathlib.Path(filename).resolve().parent == path.resolve().parent


def _arguments_of(config: Any) -> type:
  """A command line with a flag for each field of `config`, its values the defaults."""
  from stablesr_jax.training.config import TrainConfig

  return dataclasses.make_dataclass(
    "Arguments",
    [
      ("run", Annotated[_Run, tyro.conf.arg(name="")]),
      (
        "config",
        Annotated[tyro.conf.AvoidSubcommands[TrainConfig], tyro.conf.arg(name="")],
        dataclasses.field(default=config),
      ),
    ],
    frozen=True,
    namespace={"__doc__": "Trains a stage. Every field of the config can be given here in its place."},
  )


if __name__ == "__main__":  # the data pipeline's worker processes import this file
  sys.exit(main(prog="python -m stablesr_jax.cli.train"))
