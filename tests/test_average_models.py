"""examples/average_models.py: a model between two."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from stablesr_jax.checkpoints.store import NULL_PROMPT, ModelWriter, load_params, read_manifest
from stablesr_jax.errors import UserError
from tests import micro

SCRIPT = pathlib.Path(__file__).parents[1] / "examples" / "average_models.py"
spec = importlib.util.spec_from_file_location("average_models", SCRIPT)
assert spec and spec.loader
average_models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(average_models)


PARTS = ("unet", "time_aware_encoder", "autoencoder")


def test_a_quarter_of_the_way(tmp_path, model_folder):
  params, other = micro.params(), tmp_path / "other"
  with ModelWriter(other) as writer:
    for part in PARTS:
      writer.write(part, jax.tree.map(lambda a: 2 * np.asarray(a), params[part]))
    writer.copy(NULL_PROMPT, model_folder / NULL_PROMPT)
    writer.commit(read_manifest(model_folder))
  average_models.average(model_folder, other, 0.25, tmp_path / "between")
  manifest = read_manifest(tmp_path / "between")
  assert manifest.architecture == micro.MODEL and manifest.sampling == micro.SAMPLING
  for part in PARTS:
    found = load_params(tmp_path / "between", manifest, (part,))[part]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 1.25 * b, rtol=1e-6), found, params[part])


def test_what_does_not_fit_is_refused(tmp_path, model_folder):
  other = micro.write(tmp_path / "other", dataclasses.replace(micro.MODEL, autoencoder=None))
  with pytest.raises(UserError, match="not of one architecture"):
    average_models.average(model_folder, other, 0.5, tmp_path / "between")
  with pytest.raises(UserError, match="share 2"):
    average_models.average(model_folder, model_folder, 2.0, tmp_path / "between")
  assert not (tmp_path / "between").exists()
