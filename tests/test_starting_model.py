"""What the stages read of the model that training starts from."""

import dataclasses
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.checkpoints import store
from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest, ModelWriter, load_params
from stablesr_jax.config import ComputeConfig
from stablesr_jax.errors import UserError
from stablesr_jax.models.parameters import flat, is_modulation
from stablesr_jax.parallel import data_mesh
from stablesr_jax.training.stages.restorer import RestorerTrainer
from tests.micro import MODEL, random_params
from tests.recipes import restorer

PARTS = ("unet", "time_aware_encoder", "autoencoder")


@pytest.fixture
def reads(monkeypatch):
  """Names of what was read since, by part."""
  read: list[tuple[str, list[str]]] = []
  load = store.ocp.load

  def noted(path, target):
    read.append((path.rpartition("/")[2], list(flat(target))))
    return load(path, target)

  monkeypatch.setattr(store.ocp, "load", noted)
  return read


def write(folder, architecture, parts):
  with ModelWriter(folder) as writer:
    for part in parts:
      writer.write(part, random_params(architecture, part))
    writer.write(NULL_PROMPT, {NULL_PROMPT: np.full((77, architecture.unet.context_dim), 0.1, np.float32)})
    writer.commit(Manifest("start", architecture))


def stage(folder, dtype):
  config = dataclasses.replace(restorer(), model_path=str(folder), compute=ComputeConfig(dtype=dtype))
  return RestorerTrainer(config, data_mesh())


@pytest.mark.slow
def test_a_restorer_reads_a_plain_prior_once_in_the_computed_dtype(tmp_path, reads):
  unet = dataclasses.replace(MODEL.unet, conditioning="none")
  architecture = dataclasses.replace(MODEL, unet=unet, time_aware_encoder=None)
  write(tmp_path / "prior", architecture, ("unet", "autoencoder"))
  trainer = stage(tmp_path / "prior", "bfloat16")
  assert trainer.pretrained() == {} and not reads
  frozen = flat(trainer.frozen)
  assert sorted(part for part, _ in reads) == ["autoencoder", NULL_PROMPT, "unet"]
  whole = load_params(tmp_path / "prior", Manifest("", architecture), ("unet", "autoencoder", NULL_PROMPT))
  for path, value in flat(whole).items():
    if "decoder/cfw_" in path:
      assert path not in frozen
    else:
      assert frozen[path].dtype == jnp.bfloat16 and (frozen[path] == value.astype(jnp.bfloat16)).all(), path
  # What is exported is the starting model's to the bit.
  exported = trainer.export(trainer.init(jax.random.key(0)), dict).params["unet"]
  for path, value in flat(whole["unet"]).items():
    assert (flat(exported)[path] == value).all(), path


def test_a_restorer_that_goes_on_reads_each_parameter_once(tmp_path, reads):
  write(tmp_path / "model", MODEL, PARTS)
  trainer = stage(tmp_path / "model", "float32")
  found, frozen = trainer.pretrained(), trainer.frozen
  names = [f"{part}/{name}" for part, names in reads for name in names]
  assert len(names) == len(set(names))
  assert all(map(is_modulation, flat(found["unet"]))) and not any(map(is_modulation, flat(frozen["unet"])))
  count = len(reads)
  trainer.export(found, dict)
  assert len(reads) == count  # the frozen parameters are exact


def test_what_a_folder_lacks_is_named(tmp_path):
  unet = dataclasses.replace(MODEL.unet, conditioning="none")
  write(tmp_path / "prior", dataclasses.replace(MODEL, unet=unet), ("unet",))
  with pytest.raises(
    ValueError, match="unet: cannot be loaded: the weights do not fit model.json: .*/sft/.* is missing"
  ):
    load_params(tmp_path / "prior", Manifest("", MODEL), ["unet"], chosen=is_modulation)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # reads that Orbax leaves to themselves
@pytest.mark.parametrize(
  "changes, message",
  [
    ({"blocks_per_level": 2}, "down_0_1/residual/conv1/bias is missing"),
    ({"sft_hidden_channels": 16}, r"down_0_0/residual/sft/beta/kernel is of shape \(3, 3, 8, 8\), not \(3, 3, 16, 8\)"),
    ({"conditioning": "none"}, "down_0_0/residual/sft/.* is one too many"),
  ],
)
def test_weights_of_another_architecture_are_named(tmp_path, changes, message):
  write(tmp_path / "model", MODEL, ("unet",))
  other = dataclasses.replace(MODEL, unet=dataclasses.replace(MODEL.unet, **changes))
  with pytest.raises(UserError, match=f"unet: cannot be loaded: the weights do not fit model.json: {message}$"):
    load_params(tmp_path / "model", Manifest("", other), ["unet"])
  gc.collect()  # here, not in another test
