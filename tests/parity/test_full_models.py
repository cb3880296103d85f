"""The full-size networks: the 1.4 B-parameter synthetic checkpoint, converted by convert_weights.py and run."""

import csv
import dataclasses
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stablesr_jax.checkpoints.conversion import convert
from stablesr_jax.checkpoints.export import export
from stablesr_jax.checkpoints.store import NULL_PROMPT, load_params, read_manifest
from stablesr_jax.checkpoints.tensor_file import open_tensors
from stablesr_jax.config import stablesr_512
from stablesr_jax.models.tokenizer import tokenize
from tests.parity.conftest import Converted
from tests.reference_data import (
  FOLDER,
  fidelity_weights,
  load,
  nhwc,
  relative_error,
  salt,
  synthetic_rule,
  write_checkpoint,
)

pytestmark = pytest.mark.full
ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass
class Conversion:
  model: pathlib.Path
  report: str
  peak_bytes: int
  largest_file: int


@pytest.fixture(scope="module")
def conversion(tmp_path_factory) -> Conversion:
  folder = tmp_path_factory.mktemp("full")
  inputs = [
    write_checkpoint("stablesr_512_checkpoint", folder / "stablesr_000117.ckpt"),
    write_checkpoint("cfw_checkpoint", folder / "vqgan_cfw_00011.ckpt"),
  ]
  command = [sys.executable, str(ROOT / "convert_weights.py"), "--input", *map(str, inputs), "--output"]
  done = subprocess.run([*command, str(folder / "model")], check=True, capture_output=True, text=True)
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
  largest = max(path.stat().st_size for path in inputs)
  for path in inputs:
    path.unlink()
  return Conversion(folder / "model", done.stdout, peak, largest)


def part(conversion: Conversion, *parts: str) -> Converted:
  manifest = read_manifest(conversion.model)
  return Converted(manifest.architecture, load_params(conversion.model, manifest, parts))


def test_conversion(conversion):
  manifest = read_manifest(conversion.model)
  assert manifest.architecture == stablesr_512()
  assert [source["kind"] for source in manifest.sources] == ["cfw", "stablesr"]
  assert conversion.peak_bytes < 2.2 * conversion.largest_file
  assert "unknown" not in conversion.report, conversion.report


def test_unet_and_time_aware_encoder(conversion):
  data, model = load("full_unet"), part(conversion, "unet", "time_aware_encoder")
  x, lr = nhwc(data["x"]), nhwc(data["lr"])
  structure = model.apply("time_aware_encoder", lr, data["t"])
  for features in structure:
    width = features.shape[2]
    assert relative_error(features[..., :8], nhwc(data[f"struct_{width}_first8"])) <= 1e-4
    mean_std = np.array([np.mean(features), np.std(features)])
    assert relative_error(mean_std, data[f"struct_{width}_mean_std"]) <= 1e-4
  prediction = model.apply("unet", x, data["t"], data["context"], structure)
  assert relative_error(prediction, nhwc(data["eps"])) <= 1e-4


def test_autoencoder(tmp_path):
  """The StableSR file's own autoencoder, which CFW's replaces when both are converted together."""
  prefix, listing = "first_stage_model.", tmp_path / "first_stage_checkpoint.tsv"
  header, *rows = (FOLDER / "stablesr_512_checkpoint.tsv").read_text().splitlines()
  listing.write_text("\n".join([header, *(row.removeprefix(prefix) for row in rows if row.startswith(prefix))]) + "\n")
  file = write_checkpoint(listing, tmp_path / "vae.safetensors", "--prefix", prefix)
  manifest = convert([file], tmp_path / "model")
  model = Converted(manifest.architecture, load_params(tmp_path / "model", manifest, ["autoencoder"]))
  data = load("full_autoencoder")
  moments, _ = model.apply("autoencoder", nhwc(data["image"]), method="encode")
  assert relative_error(moments, nhwc(data["moments"])) <= 1e-3
  decoded = model.apply("autoencoder", nhwc(data["z"]), method="decode")
  assert relative_error(decoded, nhwc(data["decoded"])) <= 1e-3


def test_controllable_feature_wrapping(conversion):
  data, model = load("full_cfw"), part(conversion, "autoencoder")
  moments, features = model.apply("autoencoder", nhwc(data["image"]), method="encode")
  assert relative_error(moments, nhwc(data["moments"])) <= 1e-3
  for key, weight in fidelity_weights(data).items():
    decoded = model.apply("autoencoder", nhwc(data["z"]), features, weight, method="decode")
    assert relative_error(decoded, nhwc(data[key])) <= 1e-3, key


def test_text_encoder(conversion):
  data, model = load("full_text"), part(conversion, "text_encoder")
  tokens = tokenize([str(prompt) for prompt in data["prompts"]])
  np.testing.assert_array_equal(tokens, data["tokens"])
  embedding = model.apply("text_encoder", tokens)
  assert relative_error(embedding[:2], data["embedding_first2"]) <= 1e-4
  mean_std = np.stack([embedding.mean((1, 2)), embedding.std((1, 2))], axis=1)
  np.testing.assert_allclose(mean_std, data["embedding_mean_std"], rtol=1e-3, atol=1e-5)
  null_prompt = load_params(conversion.model, read_manifest(conversion.model), [NULL_PROMPT])[NULL_PROMPT]
  np.testing.assert_allclose(null_prompt, model.apply("text_encoder", tokenize([""]))[0], atol=1e-4)


def test_a_photograph(conversion, tmp_path):
  """Random weights paint noise; wavelet colour correction keeps the photograph's low frequencies beneath it."""
  source, target = ROOT / "examples" / "degraded" / "astronaut.png", tmp_path / "restored.png"
  command = [sys.executable, str(ROOT / "infer.py"), "--input", str(source), "--output", str(target)]
  options = ["--model", str(conversion.model), "--steps", "4", "--color-fix", "wavelet"]
  subprocess.run([*command, *options], check=True)
  with Image.open(source) as before, Image.open(target) as after:
    assert after.size == (4 * before.width, 4 * before.height)
    low = [np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX), float) for image in (before, after)]
  assert np.abs(low[0] - low[1]).mean() < 8


def test_round_trip_to_pytorch(conversion, tmp_path):
  """The published keys and shapes come back, and the tensors to the bit."""
  written = export(conversion.model, tmp_path / "out.safetensors")
  listings = ["stablesr_512_checkpoint", "cfw_checkpoint"]
  rule = synthetic_rule()
  for path, listing in zip(written, listings, strict=True):
    with open(FOLDER / f"{listing}.tsv", newline="") as f:
      rows = {row["name"]: row["shape"] for row in csv.DictReader(f, delimiter="\t")}
    tensors = open_tensors(path)
    assert {name: "x".join(map(str, tensors.shape(name))) or "scalar" for name in tensors} == rows
    expected = dict(rule.checkpoint(FOLDER / f"{listing}.tsv", salt())) if listing == "cfw_checkpoint" else {
      name: tensor
      for name, tensor in rule.checkpoint(FOLDER / f"{listing}.tsv", salt())
      if name.startswith(("structcond_stage_model.", "model.diffusion_model.out"))
    }  # fmt: skip
    assert expected
    for name, tensor in expected.items():
      np.testing.assert_array_equal(tensors.read(name), tensor, err_msg=name)
    tensors.close()
    path.unlink()
