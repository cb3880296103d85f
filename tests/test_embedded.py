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

# The paper's way: several steps from the noised LR latent, and not all of the features of the input.
GENERATIVE = {"steps": 4, "start_step": 120, "start_noise": 1.0, "fidelity_weight": 0.75, "color_fix": "wavelet"}


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
def test_held_out_photographs(model, restored):
  """By default closer to the photograph than bicubic enlargement; with a low w more natural."""
  sampling = dataclasses.replace(model.manifest.sampling, **GENERATIVE)
  measured: dict[str, list] = {"bicubic": [], "default": [], "generative": []}
  for name in gallery.PARTS:
    degraded, original = Image.open(EXAMPLES / "degraded" / f"{name}.png"), gallery.original(name)
    pictures = {
      "bicubic": degraded.resize(original.shape[1::-1], Image.Resampling.BICUBIC),
      "default": restored[name],
      "generative": model.upscale(degraded, sampling=sampling),
    }
    for method, picture in pictures.items():
      image, reference = (jnp.asarray(np.asarray(pixels) / np.float32(255))[None] for pixels in (picture, original))
      values = psnr_y(image, reference)[0], ssim_y(image, reference)[0], sharpness(image)[0]
      measured[method].append([*(float(value) for value in values), niqe(np.asarray(picture) / 255)])
  bicubic, default, generative = (
    dict(zip(("psnr", "ssim", "sharpness", "niqe"), np.mean(values, axis=0), strict=True))
    for values in measured.values()
  )
  assert default["psnr"] > bicubic["psnr"] + 0.1
  assert default["ssim"] > bicubic["ssim"] + 0.01
  assert generative["psnr"] > bicubic["psnr"] - 0.3
  assert generative["sharpness"] > 0.95 * bicubic["sharpness"]  # to which noise and blocks add
  assert generative["niqe"] < bicubic["niqe"] - 1


@pytest.mark.full
def test_the_generative_end_does_not_blur(model):
  """Where there is no noise to be counted as sharpness, the result with a low w is the sharper one."""
  sampling = dataclasses.replace(model.manifest.sampling, **GENERATIVE)
  measured = []
  for name in gallery.PARTS:
    original = Image.fromarray(gallery.original(name))
    clean = original.resize((original.width // 4, original.height // 4), Image.Resampling.BICUBIC)
    pictures = clean.resize(original.size, Image.Resampling.BICUBIC), model.upscale(clean, sampling=sampling)
    measured.append([float(sharpness(jnp.asarray(picture, jnp.float32)[None] / 255)[0]) for picture in pictures])
  bicubic, generative = np.mean(measured, axis=0)
  assert generative > bicubic


@pytest.mark.slow
def test_a_later_start_keeps_more_of_the_input(model):
  """The distance to the enlarged input grows with the timestep at which the noised input starts."""
  degraded = Image.open(EXAMPLES / "degraded" / f"{next(iter(gallery.PARTS))}.png").crop((32, 32, 104, 104))  # one tile
  wanted = dataclasses.replace(model.manifest.sampling, **GENERATIVE | {"steps": 1, "color_fix": "none"})
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


@pytest.mark.parametrize("size, scale", [((1, 1), 4), ((5, 7), 0.5), ((3, 90), 4)])
def test_a_flat_picture_of_few_pixels_stays_flat(model, size, scale):
  """Most of what the networks see is then reflection, in whose middle the picture lies."""
  colour = np.array([200, 30, 90], np.uint8)
  result = model.upscale(np.tile(colour, (*size, 1)), scale=scale)
  assert np.abs(result.astype(int) - colour).max() <= 3
