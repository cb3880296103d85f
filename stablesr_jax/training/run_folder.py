"""A run's folder: one run at a time, and what it was told to do."""

import contextlib
import json
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from stablesr_jax.errors import UserError
from stablesr_jax.files import atomic_write, lock
from stablesr_jax.settings import read_json, to_json
from stablesr_jax.training.config import TrainConfig

CONFIG = "config.json"
LOCK = ".lock"


@contextlib.contextmanager
def only_run(folder: pathlib.Path) -> Iterator[None]:
  """Keeps other runs out of the folder until the block ends, or the process, however it does. All of a run's processes
  enter it together; the first one holds the lock.

  Raises:
    UserError: another run is at work there.
  """
  with contextlib.ExitStack() as stack:
    taken = jax.process_index() == 0 and not lock(stack.enter_context((folder / LOCK).open("a")), wait=False)
    if jax.process_count() > 1:
      taken = bool(multihost_utils.broadcast_one_to_all(np.array(taken)))
    if taken:
      raise UserError(f"{folder}: another run is at work there; wait for its end, or choose another --workdir")
    yield


def note_config(folder: pathlib.Path, config: TrainConfig) -> list[str]:
  """Writes `config.json`, and says what changed since the folder's last run.

  Raises:
    UserError: the folder has a run of another stage or architecture, or its `config.json` is damaged.
  """
  path = folder / CONFIG
  now = {"kind": type(config.stage).__name__, **to_json(config)}
  now = json.loads(json.dumps(now))  # tuples as lists, as they are read
  changes = []
  if path.exists():
    changes = list(_changes(read_json(path), now))
    for change in changes:
      if change.startswith(("kind:", "model.")):
        raise UserError(f"{folder}: has another run: {change} (choose another --workdir)")
  if jax.process_index() == 0:
    with atomic_write(path) as temporary:
      temporary.write_text(json.dumps(now, indent=2) + "\n")
  return changes


def _changes(before: object, now: object, where: str = "") -> Iterator[str]:
  if isinstance(before, dict) and isinstance(now, dict):
    for name in {**before, **now}:
      yield from _changes(before.get(name), now.get(name), f"{where}.{name}" if where else name)
  elif before != now:
    yield f"{where}: {before} before, {now} now"
