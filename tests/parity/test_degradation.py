"""The degradation against the published implementation's answers: its parts exactly, the whole by its statistics.

The folder of answers is a parameter, the environment variable STABLESR_REFERENCE; what to compare is read from it.
"""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import skimage.data

from stablesr_jax import pixels
from stablesr_jax.degradation import PRESETS, blur, degrade, jpeg
from stablesr_jax.degradation.sharpen import unsharp_mask

reference_folder = pathlib.Path(os.environ.get("STABLESR_REFERENCE", pathlib.Path(__file__).parents[1] / "reference"))
parts = dict(np.load(reference_folder / "degradation.npz"))
statistics = dict(np.load(reference_folder / "degradation_statistics.npz"))
image = parts["image"]
tolerance = 2e-3

# The kernels that the answers' names stand for: arguments beside the width.
axes = {"sigma_x": 1.5, "sigma_y": 0.6, "theta": 0.7}
kernels = {
  "iso": lambda width: blur.bivariate_kernel(width, 1.3, 1.3),
  "aniso": lambda width: blur.bivariate_kernel(width, **axes),
  "generalized": lambda width: blur.bivariate_kernel(width, **axes, beta=0.8),
  "plateau": lambda width: blur.bivariate_kernel(width, **axes, beta=1.4, plateau=True),
  "sinc": lambda width: blur.sinc_kernel(width, np.pi / 2.5, 13),
}


def names(prefix):
  found = sorted(name.removeprefix(prefix) for name in parts if name.startswith(prefix))
  assert found, f"no {prefix}* among the answers"
  return found


def error(ours, theirs):
  assert ours.shape == theirs.shape
  return np.abs(np.asarray(ours) - theirs).max()


@pytest.mark.parametrize("quality", names("jpeg_"))
def test_jpeg(quality):
  assert error(jax.jit(jpeg.compress)(image, float(quality)), parts[f"jpeg_{quality}"]) <= tolerance


def test_jpeg_takes_a_quality_for_each_image():
  qualities = [float(q) for q in names("jpeg_")]
  several = jpeg.compress(jnp.stack([image[0]] * len(qualities)), jnp.array(qualities))
  for result, quality in zip(several, names("jpeg_"), strict=True):
    assert error(result, parts[f"jpeg_{quality}"][0]) <= tolerance


def test_sharpening():
  assert error(unsharp_mask(image), parts["usm"]) <= tolerance


@pytest.mark.parametrize("name", names("kernel_"))
def test_kernel(name):
  theirs = parts[f"kernel_{name}"]
  assert error(kernels[name](theirs.shape[0]), theirs) <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("name", names("blur_"))
def test_filter(name):
  kernel = kernels[name](parts[f"kernel_{name}"].shape[0])
  assert error(blur.filter_planes(image, kernel), parts[f"blur_{name}"]) <= tolerance


@pytest.mark.parametrize("name", names("resize_"))
def test_resize(name):
  mode, size = name.split("_")
  height, width = (int(side) for side in size.split("x"))
  assert error(pixels.resize(image, height, width, mode), parts[f"resize_{name}"]) <= tolerance


def photograph(name: str) -> np.ndarray:
  """The named image of scikit-image, (512, 512, 3) in [0, 1]: enlarged to a side of 512 where smaller, top left."""
  picture = getattr(skimage.data, name)()
  picture = np.stack([picture] * 3, -1) if picture.ndim == 2 else picture[..., :3]
  planes = picture.transpose(2, 0, 1).astype(np.float32) / 255
  height, width = planes.shape[1:]
  if min(height, width) < 512:
    scale = 512 / min(height, width)
    planes = np.asarray(pixels.resize(planes, round(height * scale), round(width * scale), "bicubic")).clip(0, 1)
  return planes[:, :512, :512].transpose(1, 2, 0)


def measure(low: np.ndarray, clean: np.ndarray) -> dict[str, float]:
  """The statistics of one draw, (128, 128, 3), against the area-downsampled image."""
  luma = low @ np.array([0.299, 0.587, 0.114])
  laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
  difference = low - clean
  pairs = luma[:, 8::8].shape[1]
  edges = np.abs(luma[:, 7::8][:, :pairs] - luma[:, 8::8]).mean()
  return {
    "psnr_vs_area_down": -10 * np.log10((difference**2).mean()),
    "laplacian_mean_abs": np.abs(laplacian).mean(),
    "laplacian_rms": np.sqrt((laplacian**2).mean()),
    "mean_error": difference.mean(),
    "error_std": difference.std(),
    "jpeg_block_edge_ratio": edges / np.abs(np.diff(luma, axis=1)).mean(),
    "chroma_std": (low - luma[..., None]).std(),
  }


@pytest.fixture(scope="module")
def drawn():
  picture = photograph(str(statistics["image"]))
  clean = picture.reshape(128, 4, 128, 4, 3).mean((1, 3))
  settings = dataclasses.replace(PRESETS["stablesr_512"], clean_probability=0.0)
  images = np.stack([picture] * 50)
  keys = jax.random.split(jax.random.key(0), 400 // len(images))
  lows = np.concatenate([np.asarray(degrade(key, images, settings), np.float64) for key in keys])
  measured = [measure(low, clean) for low in lows]
  return {name: np.array([m[name] for m in measured]) for name in measured[0]}


@pytest.mark.full
@pytest.mark.parametrize("column", range(statistics["stats"].shape[1]), ids=lambda i: str(statistics["names"][i]))
def test_distribution_of_whole_pipeline(drawn, column):
  """By a Kolmogorov-Smirnov distance that chance exceeds less than once in a hundred times, of 400 draws each."""
  ours, theirs = drawn[str(statistics["names"][column])], statistics["stats"][:, column]
  assert scipy.stats.ks_2samp(ours, theirs).statistic <= 0.12
