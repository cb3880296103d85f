"""Runs of train.py: every recipe, several devices and processes, kills, and what a restorer learns. Micro networks."""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

from stablesr_jax.checkpoints.store import load_params, read_manifest
from stablesr_jax.cli import train
from stablesr_jax.data.cfw_set import read_sample, sample_paths
from stablesr_jax.models.components import COMPONENTS
from stablesr_jax.models.parameters import flat, is_cfw, is_modulation
from stablesr_jax.training.config import (
  AutoencoderStage,
  CfwDataStage,
  CfwStage,
  OneStepStage,
  PriorStage,
  RestorerStage,
)
from tests import micro, recipes
from tests.micro import photograph

pytestmark = pytest.mark.training

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
STOPPED = 75

CONFIG = """
from stablesr_jax.training.config import *
from tests.recipes import *

def get_config():
  return {}
"""


class Place:
  """A folder that train.py is run in. Its runs share what they compile."""

  def __init__(self, folder: pathlib.Path, compiled: pathlib.Path):
    self.folder, self.compiled = folder, compiled

  def start(
    self, config: str, workdir: str, *flags: object, devices: int = 1, optimize: bool = False
  ) -> subprocess.Popen:
    """A process that trains what the expression `config`, of names in `recipes`, says.

    Most runs take few steps: they are over sooner with programs that are compiled quickly than with fast ones.
    """
    command = [sys.executable, ROOT / "train.py", *self._arguments(config, workdir, *flags)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = "" if optimize else "--xla_backend_optimization_level=0"
    with (self.folder / workdir).with_suffix(".log").open("a") as log:
      return subprocess.Popen(list(map(str, command)), cwd=self.folder, env=environment, stdout=log, stderr=log)

  def run(self, config: str, workdir: str, *flags: object, **settings: Any) -> pathlib.Path:
    """The folder of a run that ended well: in this process, or with `settings` in one of its own."""
    if settings:
      self.wait(self.start(config, workdir, *flags, **settings), workdir, 0)
      return self.folder / workdir
    arguments = list(map(str, self._arguments(config, workdir, *flags)))
    with contextlib.chdir(self.folder), (self.folder / workdir).with_suffix(".log").open("a") as log:
      with contextlib.redirect_stderr(log):
        code = train.main(arguments)
    assert code == 0, self.log(workdir)[-3000:]
    return self.folder / workdir

  def wait(self, process: subprocess.Popen, workdir: str, code: int) -> None:
    try:
      found = process.wait(timeout=600)
    finally:
      process.kill()
    assert found == code, self.log(workdir)[-3000:]

  def log(self, workdir: str) -> str:
    return (self.folder / workdir).with_suffix(".log").read_text()

  def _arguments(self, config: str, workdir: str, *flags: object) -> list[object]:
    file = self.folder / f"{workdir.replace('/', '_')}.py"
    file.write_text(CONFIG.format(config))
    (self.folder / workdir).mkdir(parents=True, exist_ok=True)
    return ["--config", file, "--workdir", workdir, "--compile-cache", self.compiled, *flags]


@pytest.fixture(scope="module")
def place(tmp_path_factory, compile_cache):
  folder = tmp_path_factory.mktemp("training")
  for number in range(4):
    hr = Image.fromarray(np.roll(photograph(80, 96), 8 * number, axis=1))
    for name, image in (("hr", hr), ("lr", hr.resize((24, 20), Image.Resampling.BICUBIC))):
      (folder / "pictures" / name).mkdir(parents=True, exist_ok=True)
      image.save(folder / "pictures" / name / f"{number}.png")
  unet = dataclasses.replace(micro.UNET, conditioning="none")
  micro.write(folder / "models" / "prior", dataclasses.replace(micro.MODEL, unet=unet, time_aware_encoder=None))
  return Place(folder, compile_cache)


def metrics(folder: pathlib.Path, name: str = "loss") -> dict[int, float]:
  """One of a run's numbers by step; each step has it once."""
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  found = [(line["step"], line[name]) for line in lines if name in line]
  assert len(dict(found)) == len(found)
  return dict(found)


def checkpoints(folder: pathlib.Path) -> list[int]:
  return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def state_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The last checkpoint's arrays by path."""
  state: Any = ocp.load(str((folder / "checkpoints" / str(checkpoints(folder)[-1])).resolve()))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(state)}


def model_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """A model's parameters by path, "unet/conv_in/kernel" for instance."""
  manifest = read_manifest(folder)
  parts = [part for part in COMPONENTS if getattr(manifest.architecture, part) is not None]
  return {path: np.asarray(leaf) for path, leaf in flat(load_params(folder, manifest, parts)).items()}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
  return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# Every recipe.


class Recipes:
  """Runs recipes of configs/ in a place, those before them first, each once."""

  def __init__(self, place: Place):
    self.place, self.done = place, dict[str, pathlib.Path]()

  def __call__(self, name: str) -> pathlib.Path:
    if name not in self.done:
      config = recipes.micro(name)
      for source in recipes.source_of(config):
        self(source)
      if config.model_path is not None and config.model_path.startswith("models/"):
        self._model(config)
      self.done[name] = self.place.run(f"micro({name!r})", f"runs/{name}")
    return self.done[name]

  def _model(self, config: Any) -> None:
    """A model that was not trained here, as it would be converted: Stable Diffusion, or Turbo."""
    source = self("stablesr_512" if config.model_path.endswith("turbo") else "tiny_prior") / "model"
    path = self.place.folder / config.model_path
    shutil.copytree(source, path, dirs_exist_ok=True)
    manifest = json.loads((path / "model.json").read_text())
    manifest["architecture"]["diffusion"] = dataclasses.asdict(config.model.diffusion)
    (path / "model.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def recipe(place):
  return Recipes(place)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(recipe, name):
  folder, config = recipe(name), recipes.micro(name)
  if isinstance(config.stage, CfwDataStage):
    samples = [read_sample(path) for path in sample_paths(folder)]
    assert [sample["hr"].shape for sample in samples] == [(recipes.CROP, recipes.CROP, 3)] * config.stage.count
    assert all(np.isfinite(sample["latent"]).all() for sample in samples)
    return
  assert all(np.isfinite(value) for value in metrics(folder).values()) and list(metrics(folder)) == [1, 2]
  assert checkpoints(folder) == [2]
  assert metrics(folder, "skipped_steps")[2] == 0
  if config.validation is not None:
    assert [path.name for path in (folder / "samples").iterdir()] == ["0000002.png"]
  trained = {
    AutoencoderStage: ["autoencoder"],
    PriorStage: ["unet", "autoencoder"],
    RestorerStage: ["unet", "time_aware_encoder", "autoencoder"],
    CfwStage: ["unet", "time_aware_encoder", "autoencoder"],
    OneStepStage: ["unet", "time_aware_encoder", "autoencoder"],
  }[type(config.stage)]
  assert {path.split("/")[0] for path in model_of(folder / "model")} == set(trained)
  assert read_manifest(folder / "model").architecture.diffusion == config.model.diffusion


def test_every_recipe_names_its_own_command():
  for name in RECIPES:
    path = ROOT / "configs" / f"{name}.py"
    train.load_config(path)
    assert f"--config configs/{name}.py --workdir runs/{name}\n" in path.read_text()


def test_the_last_recipes_model_restores(recipe):
  from stablesr_jax import StableSR

  model = StableSR.load(recipe("tiny_cfw") / "model")
  sampling = dataclasses.replace(model.manifest.sampling, tile_size=24, tile_overlap=8)
  assert model.upscale(photograph(20, 24), sampling=sampling).shape == (80, 96, 3)


# What changes.


@pytest.mark.parametrize("name", ["tiny_restorer", "stablesr_512"])
def test_the_restorer_changes_what_steers_the_prior_alone(recipe, name):
  folder = recipe(name)
  config = recipes.micro(name)
  before, after = model_of(recipe.place.folder / config.model_path), model_of(folder / "model")
  for path, value in before.items():
    assert np.array_equal(after[path], value), path
  added = after.keys() - before.keys()
  assert all(path.startswith("time_aware_encoder/") or is_modulation(path) for path in added)
  state = state_of(folder)
  assert any("sft" in path for path in state) and any("time_aware_encoder" in path for path in state)
  for path in state:
    assert "autoencoder" not in path and "null_prompt" not in path
    assert "unet" not in path or "['sft']" in path, path


def test_cfw_changes_its_own_blocks_alone(recipe):
  folder = recipe("tiny_cfw")
  before = model_of(recipe.place.folder / recipes.micro("tiny_cfw").model_path)
  after = model_of(folder / "model")
  unchanged = [path for path in after if not is_cfw(path.removeprefix("autoencoder/"))]
  assert len(unchanged) < len(after)
  for path in unchanged:
    assert np.array_equal(after[path], before[path]), path
  for path in state_of(folder):
    assert "unet" not in path and ("autoencoder" not in path or "cfw_" in path), path


# Devices and processes.


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def layout(folder: pathlib.Path) -> list[Any]:
  """How the arrays in the last checkpoint were divided among the devices."""
  file = folder / "checkpoints" / str(checkpoints(folder)[-1]) / "state" / "_sharding"
  return [json.loads(array)["partition_spec"] for array in json.loads(file.read_text()).values()]


def start_two(place: Place, config: str, workdir: str, *flags: object) -> list[subprocess.Popen]:
  together = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
  return [place.start(config, workdir, *flags, *together, "--process", i, devices=2) for i in range(2)]


def same_losses(folder: pathlib.Path, expected: pathlib.Path) -> None:
  """Twenty steps' losses agree to 1e-5."""
  one, other = metrics(expected), metrics(folder)
  assert list(one) == list(other) == list(range(1, 21)) and abs(one[20] - one[1]) > 0.01
  np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-5)


def test_the_loss_does_not_depend_on_processes(place):
  config = "restorer(PICTURES)"  # with the degradation: what is drawn for a sample is its own
  one = place.run(config, "runs/degraded", devices=4)
  for process in start_two(place, config, "runs/degraded_by_two"):
    place.wait(process, "runs/degraded_by_two", 0)
  same_losses(place.folder / "runs/degraded_by_two", one)
  expected, found = (model_of(place.folder / run / "model") for run in ("runs/degraded", "runs/degraded_by_two"))
  assert expected.keys() == found.keys()
  for path in expected:
    np.testing.assert_allclose(found[path], expected[path], atol=1e-4, err_msg=path)


def test_the_loss_does_not_depend_on_how_a_batch_or_the_state_is_divided(place):
  wide = ["--model.time-aware-encoder.channels", 48]  # so that some kernels are large enough to be divided
  four = place.run("restorer()", "runs/four", *wide, devices=4)
  same_losses(place.run("restorer()", "runs/parts", *wide, "--optimizer.accumulation", 4), four)
  divided = place.run("restorer()", "runs/divided", *wide, "--sharding", "fsdp", devices=4)
  same_losses(divided, four)
  assert any(layout(divided)) and not any(layout(four))
  expected, found = model_of(four / "model"), model_of(divided / "model")
  assert expected.keys() == found.keys()
  for path in expected:
    np.testing.assert_allclose(found[path], expected[path], atol=1e-4, err_msg=path)


# Kills.


def kill_when(process: subprocess.Popen, ready: Callable[[], bool], kind: signal.Signals) -> None:
  """Sends the signal as soon as it is time; the process must still run then."""
  deadline = time.monotonic() + 300
  while not ready():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(kind)


def at_step(folder: pathlib.Path, step: int) -> Callable[[], bool]:
  file = folder / "metrics.jsonl"
  return lambda: file.exists() and f'"step": {step},' in file.read_text()


LONG = "restorer(steps=100, batch_size=4)"
EVERY = ("--checkpoint-every", 7)


@pytest.fixture(scope="module")
def uninterrupted(place):
  return place.run(LONG, "runs/whole", *EVERY)


def test_a_killed_run_goes_on_to_the_bit(place, uninterrupted):
  rng, name = random.Random(4), "runs/killed"
  folder = place.folder / name
  stops = [rng.randint(3, 15), rng.randint(18, 30), rng.randint(33, 45), rng.randint(48, 60)]
  for stop, kind in zip(stops, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM], strict=True):
    process = place.start(LONG, name, *EVERY)
    kill_when(process, at_step(folder, stop), kind)
    if kind == signal.SIGKILL:
      place.wait(process, name, -signal.SIGKILL)
    else:
      place.wait(process, name, STOPPED)
      last = max(metrics(folder))
      assert checkpoints(folder)[-1] == last
      assert f"told to stop: step {last} is saved" in place.log(name)
    assert not (folder / "model").exists()
  place.run(LONG, name, *EVERY)
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


# The set for CFW.

SET = "micro('tiny_cfw_data')"


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in sample_paths(folder)}


def test_a_killed_set_goes_on_to_the_bit(recipe):
  place, name, count = recipe.place, "runs/killed_set", ("--stage.count", 39)
  recipe("tiny_restorer")
  whole = bytes_of(place.run(SET, "runs/whole_set", *count))
  assert len(whole) == 39
  folder, there = place.folder / name, lambda number: lambda: len(list(folder.rglob("*.npz"))) >= number
  for number, kind, code in ((5, signal.SIGKILL, -signal.SIGKILL), (14, signal.SIGTERM, STOPPED)):
    process = place.start(SET, name, *count)
    kill_when(process, there(number), kind)
    place.wait(process, name, code)
    assert number <= len(bytes_of(folder)) < 39
  (folder / "0000" / "0000001.npz").unlink()
  place.run(SET, name, *count)
  assert bytes_of(folder) == whole


def test_a_damaged_sample_is_skipped_and_counted(recipe, caplog):
  place = recipe.place
  damaged = place.folder / "runs" / "damaged_set"
  shutil.copytree(recipe("tiny_cfw_data"), damaged)
  path = damaged / "0000" / "0000002.npz"
  path.write_bytes(path.read_bytes()[:1000])
  folder = place.run("micro('tiny_cfw')", "runs/cfw_damaged", "--data.sources.0.path", damaged, "--steps", 3)
  assert metrics(folder, "unusable_images")[3] == 1
  assert "0000002.npz: damaged" in caplog.text


# What is learned.


def test_a_restorer_learns_four_photographs_by_heart(place):
  photograph = Image.open(ROOT / "tests" / "photograph.png").convert("RGB")
  for number, (left, top) in enumerate([(0, 0), (64, 0), (0, 64), (64, 64)]):
    hr = photograph.crop((left, top, left + 64, top + 64))
    for name, image in (("hr", hr), ("lr", hr.resize((16, 16), Image.Resampling.BICUBIC))):
      (place.folder / "crops" / name).mkdir(parents=True, exist_ok=True)
      image.save(place.folder / "crops" / name / f"{number}.png")
  autoencoder = "learned(AutoencoderStage(kl_weight=1e-6, perceptual_weight=0.0, adversarial_weight=0.0)"
  place.run(autoencoder + ", steps=300, batch_size=4)", "runs/learned_autoencoder", optimize=True)
  restorer = "learned(RestorerStage(train_prior=True), model_path='runs/learned_autoencoder/model'"
  folder = place.run(restorer + ", steps=300, batch_size=8)", "runs/learned", optimize=True)
  loss = metrics(folder)  # of noise of variance 1
  assert loss[20] > 0.3 and np.mean([loss[step] for step in (260, 280, 300)]) < 0.06, loss
  bicubic, ours = (metrics(folder, f"validation/psnr/{name}")[300] for name in ("lr, bicubic", "ours"))
  assert ours > bicubic + 1.5
