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
from stablesr_jax.evaluation import niqe, psnr_y, sharpness, ssim_y

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
spec = importlib.util.spec_from_file_location("gallery", EXAMPLES / "gallery.py")
assert spec and spec.loader
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)

# The paper's way: several steps from the noised LR latent, and features of the input hardly used.
GENERATIVE = {"steps": 4, "start_step": 120, "start_noise": 1.0, "fidelity_weight": 0.05, "color_fix": "wavelet"}


@pytest.fixture(scope="module")
def model() -> StableSR:
  return StableSR.load()


@pytest.fixture(scope="module")
def restored(model) -> dict[str, Image.Image]:
  """The examples' degraded photographs, restored as the model does by default."""
  return {
    name: model.upscale(Image.open(EXAMPLES / "degraded" / f"{name}.png"), seed=gallery.SEED) for name in gallery.PARTS
  }


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


@pytest.mark.full
def test_held_out_photographs(restored):
  """Closer to the photographs than bicubic enlargement."""
  gains = []
  for name in gallery.PARTS:
    degraded, original = Image.open(EXAMPLES / "degraded" / f"{name}.png"), gallery.original(name)
    bicubic = degraded.resize(original.shape[1::-1], Image.Resampling.BICUBIC)
    reference, ours, theirs = (
      jnp.asarray(np.asarray(picture) / np.float32(255))[None] for picture in (original, restored[name], bicubic)
    )
    gains.append([float((metric(ours, reference) - metric(theirs, reference))[0]) for metric in (psnr_y, ssim_y)])
  gains = np.array(gains)
  assert gains.mean(0)[0] > 0.05
  assert gains.mean(0)[1] > 0.01


@pytest.mark.full
def test_the_generative_end_does_not_blur(model):
  """With a low w the result is sharper than bicubic enlargement, where there is no noise to be counted as sharpness."""
  sampling = dataclasses.replace(model.manifest.sampling, **GENERATIVE)
  measured = []
  for name in gallery.PARTS:
    original = Image.fromarray(gallery.original(name))
    clean = original.resize((original.width // 4, original.height // 4), Image.Resampling.BICUBIC)
    pictures = (
      clean.resize(original.size, Image.Resampling.BICUBIC),
      model.upscale(clean, sampling=sampling),
    )
    measured.append(
      [
        (float(sharpness(jnp.asarray(picture, jnp.float32)[None] / 255)[0]), niqe(np.asarray(picture) / 255))
        for picture in pictures
      ]
    )
  bicubic, generative = np.mean(measured, axis=0)
  assert generative[0] > bicubic[0]
  assert generative[1] < bicubic[1] - 0.5


def test_a_later_start_keeps_more_of_the_input(model):
  """The distance to the enlarged input grows with the timestep at which the noised input starts."""
  degraded = Image.open(EXAMPLES / "degraded" / f"{next(iter(gallery.PARTS))}.png").crop((32, 32, 104, 104))  # one tile
  wanted = dataclasses.replace(model.manifest.sampling, **GENERATIVE | {"steps": 2, "color_fix": "none"})
  enlarged = np.asarray(degraded.resize((4 * degraded.width, 4 * degraded.height), Image.Resampling.BICUBIC), float)

  def distance(start_step: int) -> float:
    result = model.upscale(degraded, sampling=dataclasses.replace(wanted, start_step=start_step))
    return np.abs(np.asarray(result, float) - enlarged).mean()

  assert distance(100) < distance(500) < distance(999)


def test_the_examples_are_its_results(model):
  """To a grey level on average: processors round differently."""
  name = next(iter(gallery.PARTS))
  restored = model.upscale(Image.open(EXAMPLES / "degraded" / f"{name}.png"), seed=gallery.SEED)
  shown = np.asarray(Image.open(EXAMPLES / "restored" / f"{name}.png"), np.float32)
  assert np.abs(np.asarray(restored, np.float32) - shown).mean() < 1
