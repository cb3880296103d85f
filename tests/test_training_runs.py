"""Runs of train.py by every recipe, and what they change. Micro networks."""

import dataclasses
import json
import pathlib
import shutil
import signal
from typing import Any

import numpy as np
import pytest

from stablesr_jax.checkpoints.store import read_manifest
from stablesr_jax.cli import train
from stablesr_jax.data.cfw_set import read_sample, sample_paths
from stablesr_jax.models.parameters import is_cfw, is_modulation
from stablesr_jax.training.config import (
  AutoencoderStage,
  CfwDataStage,
  CfwStage,
  OneStepStage,
  PriorStage,
  RestorerStage,
)
from tests import recipes
from tests.micro import photograph
from tests.training_place import ROOT, STOPPED, Place, checkpoints, kill_when, metrics, model_of, state_of

pytestmark = pytest.mark.training

RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


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


# The set for CFW.

SET = "micro('tiny_cfw_data')"


def bytes_of(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in sample_paths(folder)}


def test_a_killed_set_goes_on_to_the_bit(recipe):
  place, name, count = recipe.place, "runs/killed_set", ("--stage.count", 39)
  recipe("tiny_restorer")
  whole = bytes_of(place.run(SET, "runs/whole_set", *count, devices=1))
  assert len(whole) == 39
  folder, there = place.folder / name, lambda number: lambda: len(list(folder.rglob("*.npz"))) >= number
  for number, kind, code in ((5, signal.SIGKILL, -signal.SIGKILL), (14, signal.SIGTERM, STOPPED)):
    process = place.start(SET, name, *count)
    kill_when(process, there(number), kind)
    place.wait(process, name, code)
    assert number <= len(bytes_of(folder)) < 39
  (folder / "0000" / "0000001.npz").unlink()
  place.run(SET, name, *count, devices=1)
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
