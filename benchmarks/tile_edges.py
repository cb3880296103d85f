"""Measures whether the borders of tiles show in a restored picture.

    python benchmarks/tile_edges.py --model models/a --image photo.jpg [--size 900 600] [--json FILE]

The photograph, shrunk and cropped to the size, is enlarged four times. For every border of a diffusion tile, and of the
autoencoder's pieces if the picture needs several, the mean difference of the luma across it is held against the mean
over the other places where two latent pixels meet (the decoder may have a grid of its own): `ratio` over the whole
picture, and for the border that stands out most against the 16 places around it, `worst`. The same places in the
bicubically enlarged input say what the photograph itself does there. About 1, and no more than in the input: no seams.
"""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from stablesr_jax import StableSR
from stablesr_jax.compilation import enable_cache
from stablesr_jax.evaluation import luma
from stablesr_jax.images import read_image
from stablesr_jax.inference import tiling

SCALE = 4
# The restorer pads pictures to a multiple of this before it places tiles.
PAD_TO = 64
NEIGHBOURS = 8


def borders(size: int, tile: int, overlap: int, factor: int) -> list[int]:
  """Where tiles start and end within a side of `size` pixels, in pixels.

  Args:
    tile, overlap: in latent pixels, of `factor` pixels each.
  """
  padded = -(-size // PAD_TO) * PAD_TO // factor
  starts = tiling.offsets(padded, min(tile, padded), min(overlap, tile - 1))
  places = {factor * start for start in starts} | {factor * (start + tile) for start in starts}
  return sorted(place for place in places if 0 < place < size)


def profile(image: np.ndarray, axis: int) -> np.ndarray:
  """Mean absolute difference of the luma between lines k - 1 and k, at index k; of 255.

  Args:
    image: (H, W, 3) uint8.
    axis: 0 for rows, 1 for columns.
  """
  y = 255 * np.asarray(luma(jnp.asarray(image / np.float32(255))))
  difference = np.abs(np.diff(y, axis=axis)).mean(axis=1 - axis)
  return np.concatenate([[0], difference])


def compare(
  profiles: Sequence[np.ndarray], places: Sequence[Sequence[int]], all_places: Sequence[Sequence[int]], factor: int
) -> dict[str, float]:
  """`ratio` and `worst` for rows and columns together.

  Args:
    profiles: of rows and of columns.
    places: the borders in question, of rows and of columns.
    all_places: borders of any kind, which are not "elsewhere".
  """
  at_borders, elsewhere, local = [], [], []
  for values, borders_, excluded in zip(profiles, places, all_places, strict=True):
    others = np.setdiff1d(np.arange(factor, len(values), factor), excluded)
    elsewhere += list(values[others])
    for place in borders_:
      near = others[np.abs(others - place) <= NEIGHBOURS * factor]
      at_borders.append(values[place])
      local.append(values[place] / max(values[near].mean(), 1e-6))
  return {"ratio": float(np.mean(at_borders) / np.mean(elsewhere)), "worst": float(np.max(local))}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--model", type=pathlib.Path, required=True, metavar="FOLDER")
  parser.add_argument("--image", type=pathlib.Path, required=True, metavar="FILE", help="no smaller than the size")
  parser.add_argument("--size", type=int, nargs=2, default=(900, 600), metavar=("WIDTH", "HEIGHT"))
  parser.add_argument("--steps", type=int, help="default: the model's own")
  parser.add_argument("--tile-size", type=int)
  parser.add_argument("--tile-overlap", type=int)
  parser.add_argument("--autoencoder-tile", type=int, default=1024)
  parser.add_argument("--compile-cache", default="auto", help="folder, auto or off")
  parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
  parser.add_argument("--save", type=pathlib.Path, metavar="FILE", help="write the restored picture there")
  args = parser.parse_args()
  enable_cache(args.compile_cache)

  try:
    model = StableSR.load(args.model, autoencoder_tile=args.autoencoder_tile)
    overrides = {name: getattr(args, name) for name in ("steps", "tile_size", "tile_overlap")}
    sampling = dataclasses.replace(model.manifest.sampling, **{k: v for k, v in overrides.items() if v is not None})
    photograph = Image.fromarray(np.round(read_image(args.image).rgb * 255).astype(np.uint8))
  except (ValueError, OSError) as error:
    parser.error(str(error))
  if photograph.width < args.size[0] or photograph.height < args.size[1]:
    parser.error(f"{args.image}: {photograph.width}x{photograph.height} is smaller than the size")
  image = ImageOps.fit(photograph, tuple(args.size), Image.Resampling.LANCZOS)
  restored = model.upscale(image, scale=SCALE, sampling=sampling)
  if args.save:
    restored.save(args.save)
  pictures = {
    "restored": np.asarray(restored),
    "bicubic": np.asarray(image.resize(restored.size, Image.Resampling.BICUBIC)),
  }

  assert model.config.autoencoder is not None
  factor = model.config.autoencoder.downsampling
  height, width = pictures["restored"].shape[:2]
  if min(height, width) < factor * sampling.tile_size:
    parser.error("--size: the restored picture is smaller than a tile")
  piece = args.autoencoder_tile // factor
  kinds = {"tiles": (sampling.tile_size, sampling.overlap), "autoencoder pieces": (piece, piece // 4)}
  places = {
    kind: [borders(side, tile, overlap, factor) for side in (height, width)] for kind, (tile, overlap) in kinds.items()
  }
  places = {kind: found for kind, found in places.items() if any(found)}
  if not places:
    parser.error("--size: the restored picture is a single tile")
  all_places = [sum(of_axis, []) for of_axis in zip(*places.values(), strict=True)]
  figures = {}
  for name, pixels in pictures.items():
    profiles = [profile(pixels, axis) for axis in (0, 1)]
    figures[name] = {kind: compare(profiles, found, all_places, factor) for kind, found in places.items()}
  print("| | " + " | ".join(f"{kind}: ratio | worst" for kind in places) + " |")
  print("|---|" + "---:|" * (2 * len(places)))
  for name, kinds_ in figures.items():
    print(f"| {name} | " + " | ".join(f"{k['ratio']:.3f} | {k['worst']:.3f}" for k in kinds_.values()) + " |")
  if args.json:
    found = {"size": [width, height], "tile": sampling.tile_size, "overlap": sampling.overlap, "borders": places}
    args.json.write_text(json.dumps(found | figures, indent=2) + "\n")


if __name__ == "__main__":
  main()
