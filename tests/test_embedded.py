"""The model that ships with the package."""

import dataclasses
import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image

from stablesr_jax import StableSR
from stablesr_jax import config as configs
from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest
from stablesr_jax.evaluation import psnr_y, sharpness

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
spec = importlib.util.spec_from_file_location("gallery", EXAMPLES / "gallery.py")
assert spec and spec.loader
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)


@pytest.fixture(scope="module")
def model() -> StableSR:
  return StableSR.load()


def test_it_is_small():
  assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 24 * 2**20


def test_it_is_what_the_recipes_train():
  architecture = read_manifest(EMBEDDED).architecture
  assert architecture.autoencoder is not None
  scale_factor = architecture.autoencoder.scale_factor  # measured in training
  wanted = configs.tiny()
  assert wanted.autoencoder is not None
  wanted = dataclasses.replace(wanted, autoencoder=dataclasses.replace(wanted.autoencoder, scale_factor=scale_factor))
  assert architecture == wanted


@pytest.mark.parametrize("name", gallery.PARTS)
def test_a_photograph(model, name):
  """With w = 1 closer to the photograph than bicubic enlargement, with its own defaults sharper."""
  degraded = Image.open(EXAMPLES / "degraded" / f"{name}.png")
  left, top, _ = gallery.PARTS[name]
  width, height = (gallery.SCALE * side for side in degraded.size)
  original = getattr(skimage.data, name)()[top : top + height, left : left + width]
  faithful = dataclasses.replace(model.manifest.sampling, fidelity_weight=1.0)
  pictures = [
    degraded.resize((width, height), Image.Resampling.BICUBIC),
    model.upscale(degraded, sampling=faithful),
    model.upscale(degraded),
  ]
  bicubic, close, default = (jnp.asarray(np.asarray(picture) / np.float32(255))[None] for picture in pictures)
  reference = jnp.asarray(original / np.float32(255))[None]
  assert psnr_y(close, reference)[0] > psnr_y(bicubic, reference)[0] + 0.3
  assert sharpness(default)[0] > sharpness(bicubic)[0]


def test_the_examples_are_its_results(model):
  """To a grey level on average: processors round differently."""
  name = next(iter(gallery.PARTS))
  restored = model.upscale(Image.open(EXAMPLES / "degraded" / f"{name}.png"))
  shown = np.asarray(Image.open(EXAMPLES / "restored" / f"{name}.png"), np.float32)
  assert np.abs(np.asarray(restored, np.float32) - shown).mean() < 1
