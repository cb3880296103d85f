"""Images a second of the degradation, against the same pipeline in NumPy, SciPy and Pillow on one core.

    python benchmarks/degradation.py [--size 512] [--batch 8] [--images 32] [--preset stablesr_512] [--json FILE]

Both run on one core, one after the other, in this process.
"""

import argparse
import io
import json
import os
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
  os.environ[variable] = "1"
if hasattr(os, "sched_setaffinity"):
  os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax  # noqa: E402
import numpy as np  # noqa: E402
import scipy.ndimage  # noqa: E402
import scipy.signal  # noqa: E402
import scipy.special  # noqa: E402
from PIL import Image  # noqa: E402

from stablesr_jax.degradation import PRESETS, DegradationSettings, StageSettings, degrade  # noqa: E402


class NumpyDegradation:
  """One (H, W, 3) float32 image in [0, 1] at a time, at its own sizes, with real JPEG."""

  def __init__(self, settings: DegradationSettings, seed: int):
    self.settings = settings
    self.random = np.random.default_rng(seed)

  def __call__(self, image: np.ndarray) -> np.ndarray:
    settings, random = self.settings, self.random
    first, second = settings.first, settings.second
    low = tuple(side // settings.scale for side in image.shape[:2])
    if settings.sharpen is not None:
      image = self.sharpen(image)
    factor = self.factor(first)
    x = self.blur(image, first)
    x = self.resize(x, tuple(int(side * factor) for side in image.shape[:2]), 1 / factor)
    x = self.jpeg(self.noise(x, first), first)
    if second is not None:
      factor = self.factor(second)
      x = self.resize(self.blur(x, second), tuple(int(side * factor) for side in low))
      x = self.noise(x, second)
      if random.random() < 0.5:
        x = self.jpeg(self.final_filter(self.resize(x, low)), second)
      else:
        x = self.final_filter(self.resize(self.jpeg(x, second), low))
    else:
      x = self.resize(x, low)
    return x.clip(0, 1)

  def sharpen(self, image):
    s = self.settings.sharpen
    sigma = 0.3 * (s.radius // 2 - 1) + 0.8

    def smooth(x):
      return scipy.ndimage.gaussian_filter(x, sigma, mode="mirror", radius=s.radius // 2, axes=(0, 1))

    detail = image - smooth(image)
    mask = smooth((np.abs(detail) * 255 > s.threshold).astype(np.float32))
    return mask * (image + s.weight * detail).clip(0, 1) + (1 - mask) * image

  def blur(self, image, stage: StageSettings):
    random = self.random
    if random.random() >= stage.blur_probability:
      return image
    size = random.choice(np.arange(stage.kernel_sizes[0], stage.kernel_sizes[1] + 1, 2))
    if random.random() < stage.sinc_probability:
      return self.filter(image, self.sinc(size, random.uniform(np.pi / (3 if size < 13 else 5), np.pi)))
    kind = random.choice(6, p=stage.kernel_probabilities)
    x, y = self.coordinates(size)
    sigma_x, sigma_y = random.uniform(*stage.sigma, 2)
    theta = random.uniform(-np.pi, np.pi)
    if kind % 2 == 0:
      sigma_y = sigma_x
    u, v = np.cos(theta) * x + np.sin(theta) * y, np.cos(theta) * y - np.sin(theta) * x
    q = (u / sigma_x) ** 2 + (v / sigma_y) ** 2
    if kind >= 2:
      low, high = stage.generalized_beta if kind < 4 else stage.plateau_beta
      q = q ** (random.uniform(low, 1) if random.random() < 0.5 else random.uniform(1, high))
    kernel = 1 / (1 + q) if kind >= 4 else np.exp(-q / 2)
    return self.filter(image, kernel / kernel.sum())

  def final_filter(self, image):
    if self.random.random() >= self.settings.final_sinc_probability:
      return image
    low, high = self.settings.second.kernel_sizes
    size = self.random.choice(np.arange(low, high + 1, 2))
    return self.filter(image, self.sinc(size, self.random.uniform(np.pi / 3, np.pi)))

  def coordinates(self, size):
    ticks = np.arange(size) - size // 2
    return np.meshgrid(ticks, ticks)

  def sinc(self, size, cutoff):
    r = np.hypot(*self.coordinates(size))
    kernel = np.where(r == 0, cutoff / 2, scipy.special.j1(cutoff * r) / np.where(r == 0, 1, r))
    return kernel / kernel.sum()

  def filter(self, image, kernel):
    margin = len(kernel) // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    return scipy.signal.fftconvolve(padded, kernel[..., None].astype(np.float32), mode="valid", axes=(0, 1))

  def factor(self, stage: StageSettings):
    low, high = stage.resize_range
    kind = self.random.choice(3, p=stage.resize_probabilities)
    return (self.random.uniform(1, high), self.random.uniform(low, 1), 1.0)[kind]

  def resize(self, image, size, step=None):
    mode = self.random.choice(["area", "bilinear", "bicubic"])
    for axis in (0, 1):
      source, target = image.shape[axis], size[axis]
      out = np.arange(target)
      centre = (out + 0.5) * (step or source / target) - 0.5
      if mode == "area":
        first, end = out * source // target, -(-(out + 1) * source // target)
        weights = [(first + k < end) / (end - first) for k in range((end - first).max())]
      elif mode == "bilinear":
        first = np.floor(centre.clip(0)).astype(int)
        t = centre.clip(0) - first
        weights = [1 - t, t]
      else:
        first = np.floor(centre).astype(int) - 1
        d, a = np.abs(centre - first - np.arange(4)[:, None]), -0.75
        weights = np.where(d <= 1, ((a + 2) * d - a - 3) * d * d + 1, ((d - 5) * d + 8) * d * a - 4 * a)
      shape = (-1, 1, 1) if axis == 0 else (1, -1, 1)
      image = sum(
        image.take((first + k).clip(0, source - 1), axis) * w.astype(np.float32).reshape(shape)
        for k, w in enumerate(weights)
      )
    return image

  def noise(self, image, stage: StageSettings):
    random = self.random
    gray = random.random() < stage.gray_probability
    if random.random() < stage.gaussian_probability:
      shape = (*image.shape[:2], 1 if gray else 3)
      added = random.standard_normal(shape, np.float32) * np.float32(random.uniform(*stage.gaussian_sigma) / 255)
    else:
      source = image @ np.array([[0.2989], [0.587], [0.114]], np.float32) if gray else image
      levels = np.round(source.clip(0, 1) * 255)
      quanta = 2 ** np.ceil(np.log2(np.count_nonzero(np.bincount(levels.astype(np.uint8).ravel()))))
      rate = levels / 255
      added = (random.poisson(rate * quanta) / quanta - rate) * random.uniform(*stage.poisson_scale)
    return (image + added).clip(0, 1).astype(np.float32)

  def jpeg(self, image, stage: StageSettings):
    file = io.BytesIO()
    quality = round(self.random.uniform(*stage.jpeg_quality))
    Image.fromarray(np.round(image.clip(0, 1) * 255).astype(np.uint8)).save(
      file, "JPEG", quality=quality, subsampling="4:2:0"
    )
    return np.asarray(Image.open(file), np.float32) / 255


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", type=int, default=512)
  parser.add_argument("--batch", type=int, default=8)
  parser.add_argument("--images", type=int, default=32, help="images for each of the two")
  parser.add_argument("--preset", choices=PRESETS, default="stablesr_512")
  parser.add_argument("--json", metavar="FILE", help="also write the figures there")
  args = parser.parse_args()
  settings = PRESETS[args.preset]

  # Smooth structure with some texture, so that JPEG and grey levels are as in photographs.
  random = np.random.default_rng(0)
  images = scipy.ndimage.gaussian_filter(random.uniform(size=(args.batch, args.size, args.size, 3)), (0, 6, 6, 0))
  images = (images - images.min()) / (images.max() - images.min()) + random.normal(0, 0.02, images.shape)
  images = images.clip(0, 1).astype(np.float32)

  start = time.perf_counter()
  jax.block_until_ready(degrade(jax.random.key(0), images, settings))
  compile_seconds = time.perf_counter() - start
  batches = max(1, args.images // args.batch)
  start = time.perf_counter()
  for i in range(batches):
    jax.block_until_ready(degrade(jax.random.key(i + 1), images, settings))
  ours = batches * args.batch / (time.perf_counter() - start)

  numpy_degrade = NumpyDegradation(settings, seed=0)
  numpy_degrade(images[0])
  start = time.perf_counter()
  for i in range(batches * args.batch):
    numpy_degrade(images[i % args.batch])
  theirs = batches * args.batch / (time.perf_counter() - start)

  figures = {
    "preset": args.preset,
    "size": args.size,
    "batch": args.batch,
    "device": jax.devices()[0].device_kind,
    "compile_seconds": round(compile_seconds, 1),
    "jax_images_per_second": round(ours, 2),
    "numpy_images_per_second": round(theirs, 2),
    "ratio": round(ours / theirs, 2),
  }
  for name, value in figures.items():
    print(f"{name}: {value}")
  if args.json:
    with open(args.json, "w") as file:
      json.dump(figures, file, indent=2)


if __name__ == "__main__":
  main()
