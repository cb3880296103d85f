"""Where a run's numbers and pictures go: `metrics.jsonl`, TensorBoard, and PNG grids, all in its folder."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

from stablesr_jax.errors import UserError, first_line
from stablesr_jax.files import atomic_write
from stablesr_jax.pixels import to_uint8


class MetricWriter:
  """Appends a line for each call to `metrics.jsonl` and the same numbers to TensorBoard's files in `tensorboard/`.

  Lines of steps that a killed run took after its last checkpoint are removed: they come again.
  """

  def __init__(self, folder: pathlib.Path, start: int):
    """`start` is the step that the run goes on from."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

    self._folder = folder
    path = folder / "metrics.jsonl"
    if path.exists():
      kept = [line for line in path.read_text().splitlines() if _step(line) <= start]
      with atomic_write(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept))
    self._file = path.open("a")
    board = folder / "tensorboard"
    with _told(board):
      board.mkdir(exist_ok=True)
      # Not its `SummaryWriter`, which writes in a thread of its own and tells there what the disk refuses.
      self._board = EventsWriter(str(board / "events"))
      self._board.write_event(Event(step=start + 1, file_version="brain.Event:2"))
      self._board.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

  def write(self, step: int, numbers: Mapping[str, float]) -> None:
    """
    Raises:
      UserError: The line cannot be written: a full disk, say.
    """
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.summary import scalar

    with _told(self._folder / "metrics.jsonl"):
      self._file.write(json.dumps({"step": step, **numbers}) + "\n")
      self._file.flush()
    with _told(self._folder / "tensorboard"):
      for name, value in numbers.items():
        self._board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
      self._board.flush()

  def grid(self, step: int, columns: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Writes `samples/STEP.png`: a row for each picture, a column for each name; all (N, H, W, 3) in [0, 1].

    Raises:
      UserError: It cannot be written.
    """
    picture = np.concatenate([np.concatenate(list(images), axis=0) for images in columns.values()], axis=1)
    path = self._folder / "samples" / f"{step:07d}.png"
    with _told(path), atomic_write(path) as temporary:
      path.parent.mkdir(exist_ok=True)
      Image.fromarray(to_uint8(picture)).save(temporary, format="PNG")
    return path

  def close(self) -> None:
    """Closes the files. Raises nothing of theirs: `write` has told already, and its error is what matters."""
    with contextlib.suppress(OSError):
      os.fsync(self._file.fileno())
    with contextlib.suppress(OSError):
      self._file.close()
    with contextlib.suppress(OSError):
      self._board.close()


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
  """Turns an error of the file system into one line."""
  try:
    yield
  except OSError as error:
    raise UserError(f"{path}: cannot be written ({error.strerror or first_line(error)})") from error


def _step(line: str) -> float:
  """The line's step; a line that was cut off when the run was killed counts as never written."""
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return float("inf")


def means(total: Mapping[str, Sequence[float]]) -> dict[str, float]:
  """Sums over counts, those of nothing left out."""
  return {name: float(value) / float(count) for name, (value, count) in total.items() if float(count) > 0}
