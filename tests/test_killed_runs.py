"""Runs of train.py that are killed or told to stop go on to the bit. Micro networks."""

import random
import signal

import numpy as np
import pytest

from stablesr_jax.interrupts import INTERRUPTED
from tests.training_place import (
  STOPPED,
  at_step,
  checkpoints,
  kill_when,
  metrics,
  model_of,
  same,
  start_two,
  state_of,
)

pytestmark = pytest.mark.training

LONG = "restorer(steps=100, batch_size=4)"
EVERY = ("--checkpoint-every", 7)


@pytest.fixture(scope="module")
def uninterrupted(place):
  return place.run(LONG, "runs/whole", *EVERY, devices=1)


def test_a_killed_run_goes_on_to_the_bit(place, uninterrupted):
  rng, name = random.Random(4), "runs/killed"
  folder = place.folder / name
  stops = [rng.randint(3, 15), rng.randint(18, 30), rng.randint(33, 45), rng.randint(48, 60)]
  for stop, kind in zip(stops, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT], strict=True):
    process = place.start(LONG, name, *EVERY)
    kill_when(process, at_step(folder, stop), kind)
    if kind == signal.SIGKILL:
      place.wait(process, name, -signal.SIGKILL)
    else:
      place.wait(process, name, STOPPED if kind == signal.SIGTERM else INTERRUPTED)
      last = max(metrics(folder))
      assert checkpoints(folder)[-1] == last
      assert f"told to stop: step {last} is saved" in place.log(name)
    assert not (folder / "model").exists()
  place.run(LONG, name, *EVERY, devices=1)
  assert metrics(folder) == metrics(uninterrupted)
  assert list(metrics(folder)) == list(range(1, 101))
  assert same(state_of(folder), state_of(uninterrupted))
  assert same(model_of(folder / "model"), model_of(uninterrupted / "model"))


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_step(place):
  name = "runs/stopped"
  processes = start_two(place, LONG, name)
  kill_when(processes[1], at_step(place.folder / name, 10), signal.SIGTERM)
  for process in processes:
    place.wait(process, name, STOPPED)
  last = max(metrics(place.folder / name))
  assert checkpoints(place.folder / name) == [last] and 10 <= last < 100


def test_all_that_is_trained_has_a_gradient(uninterrupted):
  squares = {path: value for path, value in state_of(uninterrupted).items() if "['nu']" in path}
  assert squares and [path for path, value in squares.items() if not np.any(value)] == []
