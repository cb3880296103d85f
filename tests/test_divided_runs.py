"""Runs of train.py on several devices and processes give what one gives. Micro networks."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.training_place import checkpoints, metrics, model_of, start_two

pytestmark = pytest.mark.training


def layout(folder: pathlib.Path) -> list[Any]:
  """How the arrays in the last checkpoint were divided among the devices."""
  file = folder / "checkpoints" / str(checkpoints(folder)[-1]) / "state" / "_sharding"
  return [json.loads(array)["partition_spec"] for array in json.loads(file.read_text()).values()]


def same_losses(folder: pathlib.Path, expected: pathlib.Path, steps: int) -> None:
  """All steps' losses agree to 1e-5."""
  one, other = metrics(expected), metrics(folder)
  assert list(one) == list(other) == list(range(1, steps + 1)) and abs(one[steps] - one[1]) > 0.01
  np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-5)


def test_the_loss_does_not_depend_on_processes(place):
  config = "restorer(PICTURES, steps=10)"  # with the degradation: what is drawn for a sample is its own
  one = place.run(config, "runs/degraded", devices=4)
  for process in start_two(place, config, "runs/degraded_by_two"):
    place.wait(process, "runs/degraded_by_two", 0)
  same_losses(place.folder / "runs/degraded_by_two", one, 10)
  expected, found = (model_of(place.folder / run / "model") for run in ("runs/degraded", "runs/degraded_by_two"))
  assert expected.keys() == found.keys()
  for path in expected:
    np.testing.assert_allclose(found[path], expected[path], atol=1e-4, err_msg=path)


def test_the_loss_does_not_depend_on_how_a_batch_or_the_state_is_divided(place):
  wide = ["--model.time-aware-encoder.channels", 48]  # so that some kernels are large enough to be divided
  four = place.run("restorer()", "runs/four", *wide, devices=4)
  same_losses(place.run("restorer()", "runs/parts", *wide, "--optimizer.accumulation", 4, devices=1), four, 20)
  divided = place.run("restorer()", "runs/divided", *wide, "--sharding", "fsdp", devices=4)
  same_losses(divided, four, 20)
  assert any(layout(divided)) and not any(layout(four))
  expected, found = model_of(four / "model"), model_of(divided / "model")
  assert expected.keys() == found.keys()
  for path in expected:
    np.testing.assert_allclose(found[path], expected[path], atol=1e-4, err_msg=path)
