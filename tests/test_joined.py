"""Checkpoints in several files, and under other names."""

import json
import pathlib

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from stablesr_jax.checkpoints.joined import DiffusersFolder, open_checkpoint
from stablesr_jax.checkpoints.sources import open_source
from stablesr_jax.checkpoints.tensor_file import sha256
from stablesr_jax.errors import UserError

TENSORS = {f"layer.{number}.weight": np.full((2, 3), number, np.float32) for number in range(4)}


def write_shards(folder: pathlib.Path, stem: str = "model") -> pathlib.Path:
  """Two shards and their index."""
  folder.mkdir(parents=True, exist_ok=True)
  places = {}
  for number in (1, 2):
    name = f"{stem}-{number:05}-of-00002.safetensors"
    part = dict(list(TENSORS.items())[2 * number - 2 : 2 * number])
    save_file(part, folder / name)
    places |= dict.fromkeys(part, name)
  index = folder / f"{stem}.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
  return index


def values(tensors) -> dict[str, list]:
  return {name: tensors.read(name).tolist() for name in tensors}


WHOLE = {name: value.tolist() for name, value in TENSORS.items()}


def test_shards_are_one_checkpoint(tmp_path):
  index = write_shards(tmp_path)
  for path in (tmp_path, index):
    tensors = open_checkpoint(path)
    assert values(tensors) == WHOLE
    assert tensors.shape("layer.3.weight") == (2, 3) and tensors.dtype("layer.3.weight") == np.float32
    tensors.close()


def test_a_shard_alone_says_what_it_is(tmp_path):
  write_shards(tmp_path)
  shard = tmp_path / "model-00001-of-00002.safetensors"
  with pytest.raises(UserError, match="^[^\n]*00001-of-00002.safetensors: is one of 2 shards; give their folder"):
    open_checkpoint(shard)
  save_file(TENSORS, tmp_path / "whole-00001-of-00001.safetensors")
  assert values(open_checkpoint(tmp_path / "whole-00001-of-00001.safetensors")) == WHOLE


def damage_none(index):
  index.write_text("{}")


def damage_list(index):
  index.write_text(json.dumps({"weight_map": {"a": ["b"]}}))


def damage_outside(index):
  index.write_text(json.dumps({"weight_map": {"a": "../model-00001-of-00002.safetensors"}}))


def damage_missing(index):
  (index.parent / "model-00002-of-00002.safetensors").unlink()


def damage_lost(index):
  places = json.loads(index.read_text())["weight_map"]
  index.write_text(json.dumps({"weight_map": places | {"layer.9.weight": "model-00001-of-00002.safetensors"}}))


def damage_elsewhere(index):
  save_file(TENSORS, index.parent / "model-00002-of-00002.safetensors")


def damage_second(index):
  write_shards(index.parent, "other")


@pytest.mark.parametrize(
  "damage, said",
  [
    (damage_none, "has no weight_map"),
    (damage_list, "has no weight_map"),
    (damage_outside, "is not a file beside it"),
    (damage_missing, "its shard model-00002-of-00002.safetensors is missing"),
    (damage_lost, r"1 tensors are in none of its shards \(layer.9.weight"),
    (damage_elsewhere, "has a tensor 'layer.0.weight' that model.safetensors.index.json does not place there"),
    (damage_second, "has several checkpoints in shards"),
  ],
)
def test_shards_that_do_not_fit(tmp_path, damage, said):
  damage(write_shards(tmp_path))
  with pytest.raises(UserError, match=said) as error:
    open_checkpoint(tmp_path)
  assert "\n" not in str(error.value)


def test_the_prefix_of_data_parallel_goes(tmp_path):
  path = tmp_path / "parallel.ckpt"
  torch.save({"state_dict": {f"module.{name}": torch.from_numpy(value) for name, value in TENSORS.items()}}, path)
  tensors = open_checkpoint(path)
  assert values(tensors) == WHOLE
  assert tensors.sha256() == sha256(path)
  save_file({"other": np.zeros(1)} | {f"module.{name}": value for name, value in TENSORS.items()}, path)
  assert "module.layer.0.weight" in open_checkpoint(path)  # part of the names


@pytest.mark.parametrize("variant", ["", ".fp16", ".bf16"])
def test_variants_of_a_diffusers_folder(tmp_path, variant):
  for part, stem in (
    ("unet", "diffusion_pytorch_model"),
    ("vae", "diffusion_pytorch_model"),
    ("text_encoder", "model"),
  ):
    (tmp_path / part).mkdir()
    save_file({f"text_model.{part}": np.ones(1, np.float16)}, tmp_path / part / f"{stem}{variant}.safetensors")
    save_file({"other": np.ones(1)}, tmp_path / part / f"{stem}.non_ema.safetensors")
  assert list(open_checkpoint(tmp_path)) == ["unet/unet", "vae/vae", "text_encoder/text_encoder"]


def test_a_diffusers_folder_in_shards(tmp_path):
  write_shards(tmp_path / "unet", "diffusion_pytorch_model")
  tensors = open_checkpoint(tmp_path)
  assert isinstance(tensors, DiffusersFolder)
  assert values(tensors) == {f"unet/{name}": value for name, value in WHOLE.items()}
  (tmp_path / "vae").mkdir()
  with pytest.raises(UserError, match="vae: has none of diffusion_pytorch_model.safetensors"):
    open_checkpoint(tmp_path)


@pytest.mark.parametrize(
  "name, said",
  [
    ("lora_unet_down_blocks_0.lora_up.weight", "is a LoRA"),
    ("unet.mid_block.attn.to_q.lora_A.weight", "is a LoRA"),
    ("model_ema.diffusion_modelinput_blocks00weight", "has only averaged copies of the weights"),
    ("something.else", "first keys: something.else"),
  ],
)
def test_what_is_not_known_is_named(tmp_path, name, said):
  save_file({name: np.zeros((4, 4), np.float32)}, tmp_path / "some.safetensors")
  with pytest.raises(UserError, match=said):
    open_source(tmp_path / "some.safetensors")
