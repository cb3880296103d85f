"""Conversion of every kind of file, at small width; what is wrong with a file is said in one line."""

import csv
import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from stablesr_jax import config as configs
from stablesr_jax.checkpoints.conversion import convert
from stablesr_jax.checkpoints.export import export
from stablesr_jax.checkpoints.store import NULL_PROMPT, load_params, read_manifest, store_as
from stablesr_jax.checkpoints.tensor_file import open_tensors
from stablesr_jax.config import TextEncoderConfig
from tests.reference_data import synthetic_rule
from tests.small import small

LISTINGS = pathlib.Path(__file__).parent / "reference"
rule = synthetic_rule()


@pytest.fixture(autouse=True)
def small_is_named(monkeypatch):
  """So that it is told from the tensors, as the published ones are."""
  monkeypatch.setattr(configs, "NAMED", {"small": small, **configs.NAMED})  # before "tiny", which is as wide


def tensors(listing: str, keep=lambda name: True) -> dict[str, np.ndarray]:
  """The small synthetic checkpoint, those tensors whose name `keep` wants."""
  with open(LISTINGS / f"{listing}.tsv", newline="") as f:
    rows = [row for row in csv.DictReader(f, delimiter="\t") if "." in row["name"] and row["shape"] != "scalar"]
  return {
    row["name"]: rule.tensor(row["name"], tuple(map(int, row["shape"].split("x")))) for row in rows if keep(row["name"])
  }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, pathlib.Path]:
  """One file of each kind."""
  folder = tmp_path_factory.mktemp("files")
  spade = lambda name: ".spade." in name
  structure = lambda name: name.startswith("structcond_stage_model.")
  contents = {
    "stablesr_000117": tensors("small_checkpoint"),
    "vqgan_cfw_00011": tensors("small_cfw_checkpoint"),
    "webui_512": tensors("small_checkpoint", lambda name: spade(name) or structure(name)),
    "v2-1_512-ema-pruned": tensors("small_checkpoint", lambda name: not spade(name) and not structure(name)),
    "cfw_only": tensors("small_cfw_checkpoint", lambda name: "fusion_layer" in name),
    "vae_only": tensors("small_cfw_checkpoint", lambda name: "fusion_layer" not in name),
  }
  paths = {}
  for name, content in contents.items():
    paths[name] = folder / f"{name}.safetensors"
    save_file(content, paths[name])
  return paths


def quiet(*args, **kwargs):
  lines: list[str] = []
  return convert(*args, report=lines.append, **kwargs), lines


def same(a, b) -> bool:
  a, b = flatten_dict(a, sep="/"), flatten_dict(b, sep="/")
  return a.keys() == b.keys() and all((np.asarray(a[key]) == np.asarray(b[key])).all() for key in a)


def test_stablesr_with_cfw(files, tmp_path):
  manifest, lines = quiet([files["stablesr_000117"], files["vqgan_cfw_00011"]], tmp_path / "model")
  assert manifest.architecture == small()
  assert manifest.name == "stablesr_000117"
  assert [source["kind"] for source in manifest.sources] == ["cfw", "stablesr"]
  assert all(len(source["sha256"]) == 64 for source in manifest.sources)
  assert any("autoencoder: taken from another file" in line for line in lines)
  assert read_manifest(tmp_path / "model") == manifest
  assert not list(tmp_path.glob(".*")), "leftovers"


def test_the_web_uis_module_and_a_stable_diffusion_file_make_the_same_model(files, tmp_path):
  parts = ["unet", "time_aware_encoder"]
  whole, _ = quiet([files["stablesr_000117"]], tmp_path / "whole")
  joined, _ = quiet([files["webui_512"], files["v2-1_512-ema-pruned"]], tmp_path / "joined")
  assert whole.architecture == joined.architecture
  a, b = (load_params(tmp_path / name, whole, parts) for name in ("whole", "joined"))
  assert same(a, b)


def test_cfw_and_autoencoder_files_make_the_same_model(files, tmp_path):
  whole, _ = quiet([files["vqgan_cfw_00011"]], tmp_path / "whole")
  joined, lines = quiet([files["cfw_only"], files["vae_only"]], tmp_path / "joined")
  assert whole.architecture == joined.architecture and joined.architecture.unet is None
  a, b = (load_params(tmp_path / name, whole, ["autoencoder"]) for name in ("whole", "joined"))
  assert same(a, b)
  assert any("cannot restore pictures yet" in line for line in lines)


def test_a_plain_stable_diffusion_file_is_a_prior_without_conditioning(files, tmp_path):
  manifest, _ = quiet([files["v2-1_512-ema-pruned"]], tmp_path / "model")
  assert manifest.architecture.unet.conditioning == "none"
  assert manifest.architecture.time_aware_encoder is None and not manifest.architecture.autoencoder.cfw


@pytest.mark.parametrize(
  "name, prediction, tile, steps",
  [("stablesr_000117", "eps", 64, 200), ("stablesr_768v_000139", "v", 96, 200), ("stablesr_turbo", "eps", 64, 4)],
)
def test_defaults_by_name(files, tmp_path, name, prediction, tile, steps):
  file = tmp_path / f"{name}.safetensors"
  file.symlink_to(files["stablesr_000117"])
  manifest, _ = quiet([file], tmp_path / "model")
  assert manifest.architecture.diffusion.prediction == prediction
  assert (manifest.sampling.tile_size, manifest.sampling.steps) == (tile, steps)
  assert manifest.sampling.fidelity_weight == 0  # no CFW in this file
  manifest, _ = quiet([file], tmp_path / "model", prediction="v")
  assert manifest.architecture.diffusion.prediction == "v"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_dtype(files, tmp_path, dtype):
  manifest, _ = quiet([files["vae_only"]], tmp_path / "model", dtype=dtype)
  assert manifest.dtype == dtype
  stored = load_params(tmp_path / "model", manifest, ["autoencoder"], dtype=dtype)
  kernel = stored["autoencoder"]["encoder"]["conv_in"]["kernel"]
  expected = tensors("small_cfw_checkpoint", lambda name: name == "encoder.conv_in.weight")["encoder.conv_in.weight"]
  np.testing.assert_array_equal(np.asarray(kernel), expected.transpose(2, 3, 1, 0).astype(kernel.dtype))


def test_values_beyond_the_stored_dtype_are_named(files, tmp_path):
  content = tensors("small_cfw_checkpoint", lambda name: "fusion_layer" not in name)
  content["encoder.conv_in.bias"][3] = 1e5
  save_file(content, tmp_path / "large.safetensors")
  with pytest.raises(
    ValueError, match="large.safetensors: encoder.conv_in.bias has values beyond the range of float16"
  ):
    quiet([tmp_path / "large.safetensors"], tmp_path / "half", dtype="float16")
  quiet([tmp_path / "large.safetensors"], tmp_path / "whole")
  with pytest.raises(
    ValueError, match="whole: autoencoder/encoder/conv_in/bias has values beyond the range of float16"
  ):
    store_as(tmp_path / "whole", tmp_path / "half", "float16")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["large.safetensors", "whole"]


def test_what_is_not_finite_is_named_and_kept_only_on_demand(files, tmp_path):
  content = tensors("small_cfw_checkpoint", lambda name: "fusion_layer" not in name)
  content["encoder.conv_in.bias"][3] = np.nan
  save_file(content, tmp_path / "nan.safetensors")
  with pytest.raises(ValueError, match="nan.safetensors: encoder.conv_in.bias has 1 of 32 values that are not finite"):
    quiet([tmp_path / "nan.safetensors"], tmp_path / "model")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.safetensors"]
  _, lines = quiet([tmp_path / "nan.safetensors"], tmp_path / "model", allow_nonfinite=True)
  assert any("encoder.conv_in.bias has values that are not finite; they are kept" in line for line in lines)
  with pytest.raises(ValueError, match="autoencoder/encoder/conv_in/bias has 1 of 32 values that are not finite"):
    store_as(tmp_path / "model", tmp_path / "again", "float32")


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool"])
def test_what_is_no_float_is_named(files, tmp_path, dtype):
  content = tensors("small_cfw_checkpoint", lambda name: "fusion_layer" not in name)
  content["encoder.conv_in.weight"] = content["encoder.conv_in.weight"].astype(dtype)
  save_file(content, tmp_path / "odd.safetensors")
  with pytest.raises(ValueError, match=f"odd.safetensors: encoder.conv_in.weight is {dtype}"):
    quiet([tmp_path / "odd.safetensors"], tmp_path / "model", allow_nonfinite=True)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.safetensors"]
  content["encoder.conv_in.weight"] = content["encoder.conv_in.weight"].astype(np.float64)
  content["loss.num_batches_tracked"] = np.array(3, np.int64)  # a counter is no weight
  save_file(content, tmp_path / "odd.safetensors")
  quiet([tmp_path / "odd.safetensors"], tmp_path / "model")


def test_a_model_folder_does_not_say_where_it_was_made(files, tmp_path):
  for listing in ("vae_only", "stablesr_000117"):
    quiet([files[listing]], tmp_path / "model")
    store_as(tmp_path / "model", tmp_path / "half", "float16")
    for folder in ("model", "half"):
      parts = [file for file in (tmp_path / folder).rglob("*") if file.is_file()]
      assert len(parts) > 3 and not [file for file in parts if str(tmp_path).encode() in file.read_bytes()]
      load_params(tmp_path / folder, read_manifest(tmp_path / folder), ["autoencoder"])


@pytest.mark.slow
def test_round_trip(files, tmp_path):
  quiet([files["stablesr_000117"], files["vqgan_cfw_00011"]], tmp_path / "model")
  main, cfw = export(tmp_path / "model", tmp_path / "out.safetensors")
  expected = tensors("small_cfw_checkpoint")
  written = open_tensors(cfw)
  assert set(written) == set(expected)
  assert all((written.read(name) == value).all() for name, value in expected.items())
  expected = tensors("small_checkpoint", lambda name: not name.startswith("first_stage_model."))
  written = open_tensors(main)
  with open(LISTINGS / "small_checkpoint.tsv", newline="") as f:
    assert set(written) == {row["name"] for row in csv.DictReader(f, delimiter="\t")}
  assert all((written.read(name) == value).all() for name, value in expected.items())
  # And what was written is read again.
  again, _ = quiet([main, cfw], tmp_path / "again")
  parts = ["unet", "time_aware_encoder", "autoencoder"]
  assert same(*(load_params(tmp_path / name, again, parts) for name in ("model", "again")))


def broken(files, tmp_path, change) -> pathlib.Path:
  content = tensors("small_checkpoint")
  change(content)
  file = tmp_path / "broken.safetensors"
  save_file(content, file)
  return file


def test_a_missing_tensor_is_named(files, tmp_path):
  key = "structcond_stage_model.fea_tran.0.in_layers.2.weight"
  file = broken(files, tmp_path, lambda content: content.pop(key))
  with pytest.raises(ValueError, match=f"time_aware_encoder lacks 1 of 200 tensors \\(first: {key}"):
    quiet([file], tmp_path / "model")
  assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".*"))


def test_a_wrong_shape_is_named(files, tmp_path):
  key = "structcond_stage_model.fea_tran.0.in_layers.2.weight"
  file = broken(files, tmp_path, lambda content: content.update({key: np.zeros((32, 16, 3, 3), np.float32)}))
  with pytest.raises(ValueError, match=f"{key} has shape 32x16x3x3"):
    quiet([file], tmp_path / "model")


def test_a_key_that_nothing_needs_is_named(files, tmp_path):
  file = broken(files, tmp_path, lambda content: content.update({"mystery.weight": np.zeros(3, np.float32)}))
  _, lines = quiet([file], tmp_path / "model")
  assert any("unknown" in line and "mystery.weight" in line for line in lines)


def test_other_mistakes(files, tmp_path):
  with pytest.raises(ValueError, match="add a Stable Diffusion 2.1 file"):
    quiet([files["webui_512"]], tmp_path / "model")
  with pytest.raises(ValueError, match="add the autoencoder's file"):
    quiet([files["cfw_only"]], tmp_path / "model")
  with pytest.raises(ValueError, match="are both an autoencoder with CFW"):
    quiet([files["vqgan_cfw_00011"], files["vqgan_cfw_00011"]], tmp_path / "model")
  other = tmp_path / "other.safetensors"
  save_file({"classifier.weight": np.zeros((2, 2), np.float32)}, other)
  with pytest.raises(ValueError, match="not a kind of checkpoint that is known .*classifier.weight"):
    quiet([other], tmp_path / "model")
  wide = tensors("small_checkpoint")
  wide["structcond_stage_model.input_blocks.0.0.weight"] = np.zeros((48, 4, 3, 3), np.float32)
  save_file(wide, other)
  with pytest.raises(ValueError, match="no named architecture has these channels .*time_aware_encoder 48"):
    quiet([other], tmp_path / "model")


def test_an_existing_folder_that_is_no_model_is_not_replaced(files, tmp_path):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
  with pytest.raises(ValueError, match="exists and is no converted model"):
    quiet([files["vae_only"]], tmp_path / "photos")
  assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"precious"


def test_model_folders_that_are_not_right(files, tmp_path):
  with pytest.raises(ValueError, match="no such model folder"):
    read_manifest(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="without model.json"):
    read_manifest(tmp_path)
  with pytest.raises(ValueError, match="a checkpoint file, not a converted model"):
    read_manifest(files["vae_only"])
  (tmp_path / "model.json").write_text("{")
  with pytest.raises(ValueError, match="not valid JSON"):
    read_manifest(tmp_path)
  (tmp_path / "model.json").write_text('{"format": 99}')
  with pytest.raises(ValueError, match="format 99"):
    read_manifest(tmp_path)
  manifest, _ = quiet([files["vae_only"]], tmp_path / "model")
  with pytest.raises(ValueError, match="no unet"):
    load_params(tmp_path / "model", manifest, ["unet"])
  wider = dataclasses.replace(
    manifest, architecture=dataclasses.replace(manifest.architecture, autoencoder=configs.AutoencoderConfig())
  )
  with pytest.raises(ValueError, match="cannot be loaded"):
    load_params(tmp_path / "model", wider, ["autoencoder"])


# Independent references: diffusers' and transformers' own modules, random and tiny.


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory):
  import diffusers
  import torch
  import transformers

  torch.manual_seed(0)
  folder = tmp_path_factory.mktemp("diffusers")
  unet = diffusers.UNet2DConditionModel(
    sample_size=16,
    block_out_channels=(32, 64, 128, 128),
    layers_per_block=2,
    attention_head_dim=(2, 4, 8, 8),  # the number of heads, whatever it is called
    cross_attention_dim=64,
    use_linear_projection=True,
  )
  vae = diffusers.AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(32, 64, 128, 128),
    layers_per_block=2,
    latent_channels=4,
  )
  text = transformers.CLIPTextModel(
    transformers.CLIPTextConfig(
      vocab_size=49408,
      hidden_size=64,
      intermediate_size=256,
      num_hidden_layers=3,
      num_attention_heads=4,
      hidden_act="gelu",
    )  # fmt: skip
  )
  diffusers.DDPMScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
  for name, module in (("unet", unet), ("vae", vae), ("text_encoder", text)):
    module.eval().save_pretrained(folder / name)
  architecture = dataclasses.replace(small(), text_encoder=TextEncoderConfig(width=64, layers=3, heads=4))
  manifest, lines = quiet([folder], folder / "model", architecture=architecture)
  assert not any("unknown" in line for line in lines), lines
  parts = ["unet", "autoencoder", "text_encoder", NULL_PROMPT]
  return manifest, load_params(folder / "model", manifest, parts), unet, vae, text


def apply(manifest, params, part, *args, **kwargs):
  from stablesr_jax.models.components import modules

  module = modules(manifest.architecture)[part]
  return jax.jit(lambda params, args: module.apply({"params": params}, *args, **kwargs))(params[part], args)


def assert_close(ours, theirs):
  theirs = theirs.detach().numpy()
  error = np.abs(np.asarray(ours) - theirs).max() / np.sqrt((theirs**2).mean())
  assert error < 1e-4


def to_torch(array: np.ndarray):
  import torch

  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def test_diffusers_unet(diffusers_folder):
  import torch

  manifest, params, unet, _, _ = diffusers_folder
  assert manifest.architecture.diffusion.prediction == "v"
  rng = np.random.default_rng(0)
  x, context = rng.standard_normal((2, 16, 24, 4), np.float32), rng.standard_normal((2, 7, 64), np.float32)
  t = np.array([3, 981])
  theirs = unet(to_torch(x), torch.from_numpy(t), torch.from_numpy(context)).sample
  assert_close(apply(manifest, params, "unet", x, t, context), theirs.permute(0, 2, 3, 1))


def test_diffusers_autoencoder(diffusers_folder):
  manifest, params, _, vae, _ = diffusers_folder
  rng = np.random.default_rng(0)
  image, z = rng.standard_normal((1, 32, 48, 3), np.float32), rng.standard_normal((1, 4, 6, 4), np.float32)
  moments, _ = apply(manifest, params, "autoencoder", image, method="encode")
  assert_close(moments, vae.encode(to_torch(image)).latent_dist.parameters.permute(0, 2, 3, 1))
  assert_close(
    apply(manifest, params, "autoencoder", z, method="decode"), vae.decode(to_torch(z)).sample.permute(0, 2, 3, 1)
  )


def test_transformers_text_encoder(diffusers_folder):
  import torch

  from stablesr_jax.models.tokenizer import tokenize

  manifest, params, _, _, text = diffusers_folder
  tokens = tokenize(["", "a photograph of an astronaut"])
  theirs = text(torch.from_numpy(tokens.astype(np.int64))).last_hidden_state
  ours = apply(manifest, params, "text_encoder", tokens)
  assert_close(ours, theirs)
  np.testing.assert_allclose(params[NULL_PROMPT], ours[0], atol=1e-5)
