"""What is wrong with an Orbax checkpoint, in few words: Orbax's own errors are many, long, and often of the effect."""

import contextlib
import inspect
import json
import logging
import os
import pathlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import tensorstore
from orbax.checkpoint import v1 as ocp

from stablesr_jax.errors import first_line, system_errno

# Files that Orbax writes: of the checkpoint, and in the folder of each tree of arrays.
_ABOUT, _TREE, _INDEX = "_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"
# JSON that each process of the run wrote: of its arrays, and the state of what is no array.
_TEXTS = ("*/array_metadatas/*", "*/*.json")


def quiet_orbax() -> None:
  """Keeps out of the log the traceback that each of Orbax's threads writes of an error that the caller gets anyway.

  From now on: threads may outlive the call that they fail in.
  """
  logging.getLogger("absl").addFilter(_is_news)  # once: it is the same function each time


def _is_news(record: logging.LogRecord) -> bool:
  return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


@contextlib.contextmanager
def quiet_reading() -> Iterator[None]:
  """Keeps off standard error what others say of a checkpoint that cannot be read: the caller gets the error.

  Orbax and TensorStore read all arrays at once, and after an error leave the others to themselves. Their complaints
  come from threads, and when objects are finalised: after an error they are dropped from then on.
  """
  logging.getLogger("asyncio").addFilter(_is_retrieved)  # once: it is the same function each time
  warnings.filterwarnings("ignore", "coroutine '.*_background_load' was never awaited", RuntimeWarning)
  tell = sys.unraisablehook

  def tell_others(dropped: "sys.UnraisableHookArgs") -> None:
    closed = dropped.exc_type is RuntimeError and str(dropped.exc_value) == "Event loop is closed"
    if not closed and not inspect.iscoroutine(dropped.object):
      tell(dropped)

  sys.unraisablehook = tell_others
  disabled = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    yield
  finally:
    logging.disable(disabled)
  sys.unraisablehook = tell


def _is_retrieved(record: logging.LogRecord) -> bool:
  return not record.getMessage().startswith("Task exception was never retrieved")


def damage(path: pathlib.Path) -> str | None:
  """What is seen to be wrong with a checkpoint before any of its arrays is read, which takes about a millisecond.

  Orbax opens all arrays at once. Where it cannot, it returns at the first error, and each of the others writes
  tracebacks to standard error; so it should not be given what is damaged.

  Returns:
    "it is missing" or "it is damaged (...)"; None if nothing is seen.
  """
  if not path.is_dir():
    return "it is missing"
  trees = sorted({file.parent for name in (_TREE, _INDEX) for file in path.glob(f"*/{name}")})
  if not trees:
    return "it is damaged (its arrays are missing)"
  texts = sorted(file for pattern in _TEXTS for file in path.glob(pattern))
  for file in (path / _ABOUT, *(tree / name for tree in trees for name in (_TREE, _INDEX)), *texts):
    name = file.relative_to(path)
    if not file.is_file():
      return f"it is damaged ({name} is missing)"
    try:
      if file.name == _INDEX:
        base = {"driver": "file", "path": f"{file.parent}{os.sep}"}
        tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result().list().result()  # has checksums
      else:
        json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
      named = re.search(r'local file "([^"]+)"', str(error))
      return _damaged(error, os.path.relpath(named[1], path) if named else str(name))
  return None


def reason(error: BaseException) -> str:
  """Why Orbax could not read a checkpoint in which neither `damage` nor `misfit` saw anything wrong."""
  cause: BaseException | None = error
  while cause is not None:
    # TensorStore's status codes, for data that are shorter than the index says, gone, or not what they should be.
    if re.match("(DATA_LOSS|OUT_OF_RANGE|NOT_FOUND|FAILED_PRECONDITION): ", str(cause)) or system_errno(cause):
      array = re.search(r'"([^"]+)/c/[\d/]+"', str(cause))
      return _damaged(cause, array[1].replace(".", "/") if array else "an array")
    cause = cause.__cause__ or cause.__context__
  return first_line(error).partition(" See full ")[0]


def _damaged(error: BaseException, what: str) -> str:
  number = system_errno(error)
  return f"{what}: {os.strerror(number)}" if number else f"it is damaged ({what} cannot be read)"


def misfit(path: pathlib.Path, wanted: Any, *, partial: bool = False) -> str | None:
  """How the tree in an Orbax checkpoint first differs from one of arrays or their shapes.

  Args:
    partial: Whether the checkpoint may have more than is wanted.

  Returns:
    One line that names the leaf; None if they do not differ, or the checkpoint cannot be read.
  """
  try:
    stored = _shapes(ocp.metadata(str(path)).metadata)
  except Exception:  # The error of whoever asks says more.
    return None
  if not stored:  # what Orbax gives where it could read nothing
    return None
  shapes = _shapes(wanted)
  for name, shape in shapes.items():
    if name not in stored:
      return f"{name} is missing"
    if stored[name] != shape:
      return f"{name} is of shape {stored[name]}, not {shape}"
  return None if partial else next((f"{name} is one too many" for name in stored if name not in shapes), None)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
