"""Checkpoints of a run when the disk is full, or they are damaged, and the lock of its folder."""

import asyncio
import dataclasses
import errno
import fcntl
import gc
import logging
import os
import types

import jax
import numpy as np
import pytest

from stablesr_jax.config import ModelConfig
from stablesr_jax.data import Batches, DataConfig, SourceConfig
from stablesr_jax.errors import UserError
from stablesr_jax.training import state as states
from stablesr_jax.training.checkpointing import Checkpoints, _refusal, saved_steps
from stablesr_jax.training.config import OptimizerConfig, PriorStage, TrainConfig
from stablesr_jax.training.metric_writer import MetricWriter
from stablesr_jax.training.run_folder import only_run

DATA = DataConfig((SourceConfig("folder", ("x",)),))
CONFIG = TrainConfig(PriorStage(), DATA, ModelConfig(), keep_last=1)
STATE = {"weights": np.arange(6, dtype=np.float32)}


class Place:
  """Stands for the place in the data; from batch `full` on the disk is full."""

  def __init__(self, batches: int = 0, full: int = 2):
    self.batches, self.full = batches, full

  async def save(self, directory):
    batches = self.batches

    async def write():
      folder = await directory.await_creation()
      if batches >= self.full:
        await asyncio.sleep(1)  # the arrays are written meanwhile: a process that ends leaves no writer behind
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      (folder / "batches").write_text(str(batches))

    return write()

  async def load(self, directory):
    async def read():
      self.batches = int((directory / "batches").read_text())

    return read()


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path, caplog):
  with pytest.raises(UserError) as caught, Checkpoints(tmp_path, CONFIG) as checkpoints:
    checkpoints.save(1, STATE, Place(1))
    checkpoints.save(2, STATE, Place(2))
    checkpoints.save(3, STATE, Place(3))  # waits for the one before
    pytest.fail("not reached")
  folder = tmp_path / "checkpoints"
  assert str(caught.value) == (
    f"{folder}: a checkpoint cannot be written (No space left on device); the last whole one is {folder / '1'}"
  )
  assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
  with Checkpoints(tmp_path, CONFIG) as checkpoints:  # the same command goes on from there
    place = Place()
    assert checkpoints.latest == 1
    restored = checkpoints.restore(STATE, place)
    assert (restored["weights"] == STATE["weights"]).all() and place.batches == 1
    checkpoints.save(4, STATE, Place(2, full=3))
  assert [path.name for path in folder.iterdir()] == ["4"]


def test_what_fails_in_the_background_is_told_at_the_end(tmp_path):
  with pytest.raises(UserError, match="No space left on device.; there is none yet"):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
      checkpoints.save(2, STATE, Place(2))


def test_it_does_not_hide_an_earlier_error(tmp_path):
  with pytest.raises(KeyError, match="first"), Checkpoints(tmp_path, CONFIG) as checkpoints:
    checkpoints.save(2, STATE, Place(2))
    raise KeyError("first")


@pytest.mark.parametrize(
  "before, now, what, how",
  [
    ((None, "a"), (0.9, "a"), "optimizer.ema-decay", "ema/a/bias is missing"),
    ((0.9, "a"), (None, "a"), "optimizer.ema-decay", "ema/a/bias is one too many"),
    ((None, "a"), (None, "b"), "what shapes the trained parameters", "params/b/bias is missing"),
  ],
)
def test_a_state_of_another_shape_is_named(tmp_path, before, now, what, how):
  def state(decay, name):
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(ema_decay=decay))
    return states.create(config, {name: {"bias": np.zeros(3, np.float32)}})

  with Checkpoints(tmp_path, CONFIG) as checkpoints:
    checkpoints.save(1, state(*before), Place())
  with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.raises(UserError) as caught:
    checkpoints.restore(jax.eval_shape(lambda: state(*now)), Place())
  message = f"{what} cannot change within a run ({how}); take it back, or choose another --workdir"
  assert str(caught.value) == f"{tmp_path / 'checkpoints' / '1'}: cannot be resumed from: {message}"


@pytest.mark.parametrize("kept, then", [(2, "to go on from step 1"), (1, "to begin anew: there is no other")])
@pytest.mark.parametrize(
  "file",
  [
    "data/process_0.json",
    "state/_METADATA",
    "state/array_metadatas/process_0",
    "state/ocdbt.process_0/d/*",
    "state/manifest.ocdbt",
  ],
)
def test_a_damaged_checkpoint_is_one_line(tmp_path, capfd, caplog, file, kept, then):
  config = dataclasses.replace(CONFIG, keep_last=kept)
  batches = lambda: Batches(None, DATA, 0)
  state = states.create(config, {"a": {"kernel": np.random.default_rng(0).standard_normal((64, 64), np.float32)}})
  with Checkpoints(tmp_path, config) as checkpoints:
    checkpoints.save(1, state, batches())
    checkpoints.save(2, state, batches())
  folder = tmp_path / "checkpoints" / "2"
  damaged = max(folder.glob(file), key=lambda path: path.stat().st_size)
  damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), state)
  with Checkpoints(tmp_path, config) as checkpoints:
    with pytest.raises(UserError) as caught:
      checkpoints.restore(abstract, batches())
    line = str(caught.value)
    assert line.startswith(f"{folder}: it is damaged") and line.endswith(f"; remove it {then}") and len(line) < 300
  del caught
  gc.collect()  # the others' complaints come now
  assert capfd.readouterr().err == "" and caplog.records == []


@pytest.mark.parametrize(
  "error, kind, message",
  [
    (PermissionError(errno.EACCES, "Permission denied"), UserError, "/1: cannot be read .Permission denied.$"),
    (ValueError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError, None),
    (ZeroDivisionError("a bug"), KeyError, "a bug"),  # as it came: a traceback
  ],
)
def test_what_is_not_damaged_is_not_to_be_removed(tmp_path, monkeypatch, error, kind, message):
  def load(*_):
    raise KeyError("Failed to load checkpointable" + str(error)) from error

  with Checkpoints(tmp_path, CONFIG) as checkpoints:
    checkpoints.save(1, STATE, Place())
  with Checkpoints(tmp_path, CONFIG) as checkpoints:
    monkeypatch.setattr(checkpoints._checkpointer, "load_checkpointables", load)
    with pytest.raises(kind, match=message):
      checkpoints.restore(STATE, Place())


def test_a_folder_has_one_run_at_a_time(tmp_path, monkeypatch):
  with pytest.raises(KeyError), only_run(tmp_path):
    with pytest.raises(UserError) as caught, only_run(tmp_path):
      pytest.fail("not reached")
    assert (
      str(caught.value) == f"{tmp_path}: another run is at work there; wait for its end, or choose another --workdir"
    )
    raise KeyError
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with only_run(tmp_path):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with only_run(tmp_path):
      pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  asked = []

  def flock(*_):
    asked.append(True)
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

  monkeypatch.setattr(fcntl, "flock", flock)
  with only_run(tmp_path), only_run(tmp_path):
    assert len(asked) == 2


def test_what_threads_log_is_dropped_after_the_run_too(tmp_path, caplog):
  for _ in range(2):
    with Checkpoints(tmp_path, CONFIG):
      pass
  log = logging.getLogger("absl")
  assert len(log.filters) == 1
  record = {"name": "absl", "levelno": logging.ERROR, "exc_info": (OSError, OSError(errno.ENOSPC, "full"), None)}
  for path in ("/lib/orbax/checkpoint/future.py", "/lib/other/future.py"):
    log.handle(logging.makeLogRecord({**record, "pathname": path, "msg": path}))
  assert [record.msg for record in caplog.records] == ["/lib/other/future.py"]


def test_steps_are_listed_without_making_anything(tmp_path):
  assert saved_steps(tmp_path / "run") == [] and not (tmp_path / "run").exists()
  for name in ("2", "10", "12.orbax-checkpoint-tmp"):
    (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
  assert sorted(saved_steps(tmp_path / "run")) == [2, 10]


def test_only_what_the_system_refuses_is_taken_for_the_users():
  assert _refusal(ValueError("RESOURCE_EXHAUSTED: Failed writing [os_error_code='28']")) == os.strerror(errno.ENOSPC)
  nested = RuntimeError("long text")
  nested.__cause__ = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
  assert _refusal(nested) == os.strerror(errno.EACCES)
  assert _refusal(TypeError("unsupported leaf")) is None


def full(*_):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_numbers_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
  writer = MetricWriter(tmp_path, 0)
  writer.write(1, {"loss": 1.0})
  writer._file.close()
  monkeypatch.setattr(writer, "_file", types.SimpleNamespace(write=full, fileno=full, close=full))
  with pytest.raises(UserError, match="metrics.jsonl: cannot be written .No space left on device.$"):
    writer.write(2, {"loss": 1.0})
  writer.close()  # does not hide it


def test_boards_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
  writer = MetricWriter(tmp_path, 0)
  writer._board.close()
  monkeypatch.setattr(writer, "_board", types.SimpleNamespace(write_event=full, flush=full, close=full))
  with pytest.raises(UserError, match="tensorboard: cannot be written .No space left on device.$"):
    writer.write(2, {"loss": 1.0})
  writer.close()


def test_tensorboard_has_the_numbers(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  writer = MetricWriter(tmp_path, 4)
  writer.write(5, {"loss": 1.5, "loss/t0-249": 0.5})
  writer.close()
  [file] = (tmp_path / "tensorboard").iterdir()
  data, events = file.read_bytes(), []
  while data:  # length, its checksum, the event, its checksum
    length = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  _, *started, one, two = events
  assert [event.step for event in started] == [5, 5]  # what an earlier run wrote from there on is not shown
  assert [(event.step, event.summary.value[0].tag) for event in (one, two)] == [(5, "loss"), (5, "loss/t0-249")]
  assert one.summary.value[0].simple_value == 1.5 and one.wall_time > 1e9
