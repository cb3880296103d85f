"""A run's Orbax checkpoints: the state, with the place in the data."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from orbax.checkpoint import v1 as ocp

from stablesr_jax.checkpoints.orbax_checkpoint import damage, misfit, quiet_orbax, quiet_reading, reason
from stablesr_jax.errors import UserError, system_errno
from stablesr_jax.training.config import TrainConfig

if TYPE_CHECKING:
  from stablesr_jax.data import Batches
  from stablesr_jax.training.state import TrainState


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
      UserError: it is damaged, cannot be read, or is not of this architecture.
      MemoryError: there is not enough for it.
    """
    assert self.latest is not None
    items = {"state": abstract} if data is None else {"state": abstract, "data": data}
    path = self.path(self.latest)
    if wrong := damage(path):
      raise UserError(f"{path}: {self._remedy(wrong)}")
    try:
      with quiet_reading():
        return self._checkpointer.load_checkpointables(self._checkpointer.latest, items)["state"]
    except Exception as error:  # Orbax's errors are many and long, and name what it tried, not what is wrong.
      if "RESOURCE_EXHAUSTED" in str(error):
        raise MemoryError from error
      if (wrong := self._unreadable(error, abstract)) is None:
        raise
      raise UserError(f"{path}: {wrong}") from error

  def _unreadable(self, error: Exception, abstract: "TrainState") -> str | None:
    """Why the last checkpoint could not be restored, and what helps; None if it is not the checkpoint's fault."""
    refused = _refusal(error)
    if refused is not None and refused != os.strerror(errno.ENOENT):  # a file that is missing is damage
      return f"cannot be read ({refused})"
    assert self.latest is not None
    with quiet_reading():
      different = misfit(self.path(self.latest), abstract)
    if different and not different.startswith("step "):  # every state has that: what lacks it was not read at all
      fixed = "optimizer.ema-decay" if different.startswith("ema/") else "what shapes the trained parameters"
      how = f"{fixed} cannot change within a run ({different}); take it back, or choose another --workdir"
      return f"cannot be resumed from: {how}"
    return self._remedy(found) if (found := reason(error)).startswith("it is damaged") else None

  def _remedy(self, wrong: str) -> str:
    if not wrong.startswith("it is damaged"):
      return f"cannot be resumed from: {wrong}"
    assert self.latest is not None
    earlier = [step for step in saved_steps(self._folder.parent) if step < self.latest]
    then = f"to go on from step {max(earlier)}" if earlier else "to begin anew: there is no other"
    return f"{wrong}; remove it {then}"

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
