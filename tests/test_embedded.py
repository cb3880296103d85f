"""The model that ships with the package."""

import dataclasses
import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stablesr_jax import StableSR
from stablesr_jax import config as configs
from stablesr_jax.checkpoints.store import EMBEDDED, read_manifest
from stablesr_jax.evaluation import niqe, psnr_y, sharpness

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


def test_held_out_photographs(model):
  """Sharper and more natural than bicubic enlargement, and not much further from the photograph."""
  measured: dict[str, list] = {"bicubic": [], "ours": []}
  for name in gallery.PARTS:
    degraded, original = Image.open(EXAMPLES / "degraded" / f"{name}.png"), gallery.original(name)
    enlarged = degraded.resize(original.shape[1::-1], Image.Resampling.BICUBIC)
    for method, picture in (("bicubic", enlarged), ("ours", model.upscale(degraded))):
      image, reference = (jnp.asarray(np.asarray(pixels) / np.float32(255))[None] for pixels in (picture, original))
      values = psnr_y(image, reference)[0], sharpness(image)[0], niqe(np.asarray(picture) / 255)
      measured[method].append([float(value) for value in values])
  (psnr, sharp, natural), (bicubic_psnr, bicubic_sharp, bicubic_natural) = (
    np.mean(measured[method], axis=0) for method in ("ours", "bicubic")
  )
  assert psnr > bicubic_psnr - 0.7
  assert sharp > bicubic_sharp
  assert natural < bicubic_natural - 0.5


def test_the_examples_are_its_results(model):
  """To a grey level on average: processors round differently."""
  name = next(iter(gallery.PARTS))
  restored = model.upscale(Image.open(EXAMPLES / "degraded" / f"{name}.png"))
  shown = np.asarray(Image.open(EXAMPLES / "restored" / f"{name}.png"), np.float32)
  assert np.abs(np.asarray(restored, np.float32) - shown).mean() < 1
