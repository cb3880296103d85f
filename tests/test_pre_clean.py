"""The pre-cleaner: pieces of pictures of any size against the whole."""

import json

import jax
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from stablesr_jax import StableSR
from stablesr_jax.checkpoints.store import Manifest
from stablesr_jax.cli import infer
from stablesr_jax.config import ModelConfig, RRDBNetConfig
from stablesr_jax.inference.pre_clean import PreCleaner
from stablesr_jax.models.parameters import apply
from stablesr_jax.models.rrdbnet import RRDBNet
from stablesr_jax.pixels import antialiased
from tests import micro
from tests.stub import Stub

NETWORK = RRDBNetConfig(features=4, blocks=1, growth=2)
CONFIG = ModelConfig(unet=None, time_aware_encoder=None, autoencoder=None, text_encoder=None, precleaner=NETWORK)
# As far as the network sees: 2 + 15 convolutions at the picture's size, and less than 2 pixels of it in the large one.
SEEN = 20


@pytest.fixture(scope="module")
def params():
  return jax.tree.map(lambda leaf: 1.5 * leaf, micro.params(CONFIG)["precleaner"])


def cleaner(params, **options) -> PreCleaner:
  return PreCleaner(Manifest("tiny", CONFIG), params, **options)


def whole(params, image: np.ndarray) -> np.ndarray:
  """All of a picture at once, with its reflection around it."""
  padded = np.pad(image, [(SEEN, SEEN)] * 2 + [(0, 0)], mode="reflect")
  large = np.clip(np.asarray(jax.jit(lambda x: apply(RRDBNet(NETWORK), params, x))(padded[None]))[0], 0, 1)
  rows, columns = (np.asarray(antialiased(4 * side, 4 * side, side, side)) for side in padded.shape[:2])
  small = np.einsum("yh,hwc,xw->yxc", rows, large, columns)
  return np.clip(small, 0, 1)[SEEN:-SEEN, SEEN:-SEEN]


def test_pieces_make_the_whole(params, compiled):
  image = micro.photograph(70, 150) / np.float32(255)
  found = cleaner(params, piece=96, margin=SEEN).clean(image)
  assert found.shape == image.shape and found.dtype == np.float32 and found.std() > 0.01
  np.testing.assert_allclose(found, whole(params, image), atol=2e-6)


def test_few_programs_for_all_sizes(params, compiled):
  model = cleaner(params, piece=96, margin=16)
  model.clean(np.zeros((60, 60, 3), np.float32))
  del compiled[:]
  for size in ((50, 62), (150, 64), (300, 125)):
    assert model.clean(np.zeros((*size, 3), np.float32)).shape == (*size, 3)
  assert not compiled


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (7, 3)])
def test_small_pictures(params, size):
  image = micro.photograph(*size)
  assert cleaner(params, piece=96, margin=16)(image).shape == image.shape


def test_a_model_restores_what_is_clean(params, model):
  image, clean = micro.photograph(16, 16), cleaner(params)
  np.testing.assert_allclose(
    model.upscale(image / np.float32(255), pre_cleaner=clean), model.upscale(clean.clean(image / np.float32(255)))
  )


class Model(Stub):
  def upscale_batch(self, images, **options):
    seen.extend(images)
    return super().upscale_batch(images, **options)


seen = []


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(StableSR, "load", lambda *_, **__: Model())
  models = [micro.write(tmp_path / name, CONFIG) for name in ("one", "other")]
  pixels = np.concatenate([micro.photograph(16, 20), np.full((16, 20, 1), 77, np.uint8)], axis=-1)
  (tmp_path / "in").mkdir()
  Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
  base = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--compile-cache", "off", "--scale", "2"]

  def run(*options) -> int:
    try:
      return infer.main([str(argument) for argument in (*base, *options)])
    except SystemExit as stop:
      return int(stop.code or 0)

  assert run() == run("--pre-clean", models[0]) == 0
  raw, clean = seen
  np.testing.assert_allclose(clean, PreCleaner.load(models[0]).clean(raw), atol=1e-6)
  assert np.abs(clean - raw).max() > 0.01
  with Image.open(tmp_path / "out" / "a.png") as result:
    assert isinstance(result, PngImagePlugin.PngImageFile)
    assert (np.asarray(result)[..., 3] == 77).all()
    assert json.loads(result.text["stablesr_jax"])["pre_clean"] == "one"
  capsys.readouterr()
  assert run("--pre-clean", models[0]) == 0 and "nothing to do" in capsys.readouterr().err
  assert run() == 0 and "made with other settings (another pre-cleaner, or none)" in capsys.readouterr().err
  micro_model = micro.write(tmp_path / "micro")
  assert run("--pre-clean", micro_model) == 2
  assert f"{micro_model}: this model has no precleaner" in capsys.readouterr().err


def test_what_is_not_finite_is_told(params):
  broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params)
  with pytest.raises(ValueError, match="^the pre-cleaned picture has values that are not finite$"):
    cleaner(broken).clean(np.zeros((8, 8, 3), np.float32))
