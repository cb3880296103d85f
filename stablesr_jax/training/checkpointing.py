"""Orbax checkpoints of the training state with the place in the data."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from orbax.checkpoint import v1 as ocp

from stablesr_jax.checkpoints.orbax_checkpoint import damage, misfit, quiet_orbax, reason
from stablesr_jax.errors import UserError, system_errno
from stablesr_jax.files import atomic_write
from stablesr_jax.settings import read_json, to_json
from stablesr_jax.training.config import TrainConfig

if TYPE_CHECKING:
  from stablesr_jax.data import Batches
  from stablesr_jax.training.state import TrainState

CONFIG = "config.json"


class Checkpoints:
  """The checkpoints in a run's folder. A context manager: leaving it waits for what is still being written.

  An earlier checkpoint is removed only after a later one is complete, so a write that fails costs the new one alone.
  """

  def __init__(self, folder: pathlib.Path, config: TrainConfig):
    keep = ocp.training.preservation_policies
    kept: Any = keep.LatestN(config.keep_last)
    if config.keep_every:
      kept = keep.AnyPreservationPolicy([kept, keep.EveryNSteps(config.keep_every)])
    self._every, self._folder = config.checkpoint_every, folder.resolve() / "checkpoints"
    self._checkpointer = ocp.training.Checkpointer(
      str(self._folder),
      preservation_policy=kept,
      cleanup_tmp_directories=True,
    )

  def __enter__(self) -> "Checkpoints":
    quiet_orbax()
    return self

  def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
    """
    Raises:
      UserError: the last checkpoint could not be written. Not if the block raised: its error comes first.
    """
    try:
      with self._writing():
        self._checkpointer.close()
    except Exception:
      if error is None:
        raise

  @property
  def latest(self) -> int | None:
    """The last whole checkpoint's step."""
    return None if self._checkpointer.latest is None else self._checkpointer.latest.step

  def path(self, step: int) -> pathlib.Path:
    return self._folder / str(step)

  def restore(self, abstract: "TrainState", data: "Batches | None" = None) -> "TrainState":
    """The last state, in the shapes and shardings of `abstract`; `data` is set to its place then.

    Raises:
      UserError: it cannot be read, or is not of this architecture.
    """
    items = {"state": abstract} if data is None else {"state": abstract, "data": data}
    path = self.path(self.latest or 0)
    if wrong := damage(path):
      raise UserError(f"{path}: cannot be resumed from: {wrong}")
    try:
      return self._checkpointer.load_checkpointables(self._checkpointer.latest, items)["state"]
    except Exception as error:
      wrong = reason(error)
      if different := misfit(path, abstract):
        fixed = "optimizer.ema-decay" if different.startswith("ema/") else "what shapes the trained parameters"
        wrong = f"{fixed} cannot change within a run ({different}); take it back, or choose another --workdir"
      raise UserError(f"{path}: cannot be resumed from: {wrong}") from error

  def due(self, step: int) -> bool:
    return step % self._every == 0

  def save(self, step: int, state: "TrainState", data: "Batches") -> None:
    """Writes in the background, unless that step is there. The arrays may be used up afterwards.

    Raises:
      UserError: this checkpoint, or the one before that was still being written, cannot be written: a full disk, say.
    """
    if self.latest != step:
      with self._writing():
        self._checkpointer.save_checkpointables_async(step, {"state": state, "data": data}, force=True)

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns what the file system refuses into one line."""
    try:
      yield
    except Exception as error:
      reason = _refusal(error)
      if reason is None:
        raise
      steps = saved_steps(self._folder.parent)
      last = f"the last whole one is {self.path(max(steps))}" if steps else "there is none yet"
      raise UserError(f"{self._folder}: a checkpoint cannot be written ({reason}); {last}") from error


def saved_steps(folder: pathlib.Path) -> list[int]:
  """The steps that a run's folder has checkpoints of. Nothing is made there, as `Checkpoints` does."""
  return [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdecimal()]


def _refusal(error: BaseException | None) -> str | None:
  """What the system said where a file could not be written; None if that is not what went wrong."""
  while error is not None:
    if number := system_errno(error):
      return os.strerror(number)
    error = error.__cause__ or error.__context__
  return None


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
