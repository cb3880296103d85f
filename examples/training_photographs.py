"""Prepares freely licensed photographs from Debian packages as training data.

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers palapeli-data ...
    dpkg -x lomiri-wallpapers-16.04_*.deb packages/lomiri-wallpapers-16.04     # and so on, one folder a package
    python examples/training_photographs.py packages photographs --tile 320

`training_photographs.tsv` lists every photograph with its package, the Debian release that has it, author, licence and
checksum. Each is written shrunk to several sizes, so that its details are crisp at every size a crop is taken from,
into `train` or `validation` of the output folder. `--tile` also cuts the copies into small squares (`tiles/train`,
`tiles/validation`), which decode far faster than whole photographs, and packs them (`tiles_train.array_record`, ...)
for `data.SourceConfig("packed", ...)`. The same packages give the same pixels.
"""

import argparse
import csv
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from stablesr_jax.data import pack_images
from stablesr_jax.image_io import decode_image

LIST = pathlib.Path(__file__).with_suffix(".tsv")
SPLITS = ("train", "validation")
# Shrunk by less than this, a photograph still shows its JPEG blocks and its camera's interpolation.
LEAST_SHRINKING = 1.2


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A row of the list: where the file is, whose it is, and what it is for ("train" or "validation")."""

  package: str
  debian: str
  path: str
  author: str
  licence: str
  split: str
  sha256: str

  @property
  def name(self) -> str:
    """Unique among the photographs: some packages call every file by its size."""
    parts = pathlib.PurePosixPath(self.path).parts
    return parts[parts.index("contents") - 1] if "contents" in parts else pathlib.PurePosixPath(self.path).stem


def read_list(path: pathlib.Path = LIST) -> list[Photograph]:
  with open(path, newline="", encoding="utf-8") as file:
    return [Photograph(**row) for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def read_photograph(photograph: Photograph, packages: pathlib.Path) -> Image.Image:
  """The photograph, upright, as 8-bit RGB.

  Raises:
    ValueError: the file is missing, or is not the listed one.
  """
  path = packages / photograph.package / photograph.path
  if not path.is_file():
    raise ValueError(f"{path}: no such file; unpack {photograph.package} of Debian {photograph.debian} there")
  data = path.read_bytes()
  if hashlib.sha256(data).hexdigest() != photograph.sha256:
    raise ValueError(f"{path}: not the listed photograph; take {photograph.package} of Debian {photograph.debian}")
  return Image.fromarray(np.round(decode_image(data, str(path)).rgb * 255).astype(np.uint8))


def shrunk_copies(image: Image.Image, shorter_sides: list[int]) -> Iterator[Image.Image]:
  """Lanczos copies with these shorter sides; sizes that would not shrink the photograph are passed over."""
  for side in shorter_sides:
    factor = min(image.size) / side
    if factor >= LEAST_SHRINKING:
      yield image.resize((round(image.width / factor), round(image.height / factor)), Image.Resampling.LANCZOS)


def cut_tiles(image: Image.Image, side: int, least_detail: float) -> Iterator[Image.Image]:
  """Squares that do not overlap, spread evenly; skies and blurred backgrounds are passed over.

  Args:
    least_detail: least mean gradient magnitude of the luma, in 8-bit levels a pixel.
  """
  counts = [length // side for length in image.size]
  gaps = [(length - n * side) / (n + 1) for length, n in zip(image.size, counts, strict=True)]
  for j in range(counts[1]):
    for i in range(counts[0]):
      left, top = (round(gap + k * (side + gap)) for gap, k in zip(gaps, (i, j), strict=True))
      tile = image.crop((left, top, left + side, top + side))
      luma = np.asarray(tile.convert("L"), np.float32)
      gradient = np.hypot(np.diff(luma, axis=0)[:, :-1], np.diff(luma, axis=1)[:-1])
      if gradient.mean() >= least_detail:
        yield tile


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("packages", type=pathlib.Path, help="folder that holds a folder for each unpacked package")
  parser.add_argument("output", type=pathlib.Path, help="folder to write; its subfolders must be new or empty")
  parser.add_argument("--shorter-sides", type=int, nargs="+", default=[1440, 1080, 720, 480], metavar="PIXELS")
  parser.add_argument("--tile", type=int, metavar="PIXELS", help="also write and pack square tiles with this side")
  parser.add_argument(
    "--least-detail", type=float, default=3, metavar="LEVELS", help="drop tiles with a lower mean gradient of the luma"
  )
  args = parser.parse_args()

  photographs = read_list()
  folders = [args.output / kind for kind in SPLITS]
  folders += [args.output / "tiles" / kind for kind in SPLITS] if args.tile else []
  for folder in folders:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
      raise SystemExit(f"training_photographs: error: {folder}: is not empty")

  counts = dict.fromkeys(folders, 0)
  for photograph in photographs:
    try:
      image = read_photograph(photograph, args.packages)
    except ValueError as error:
      raise SystemExit(f"training_photographs: error: {error}") from None
    whole, tiles = args.output / photograph.split, args.output / "tiles" / photograph.split
    for copy in shrunk_copies(image, args.shorter_sides):
      name = f"{photograph.name}_{min(copy.size)}"
      copy.save(whole / f"{name}.png")
      counts[whole] += 1
      for k, tile in enumerate(cut_tiles(copy, args.tile, args.least_detail) if args.tile else ()):
        tile.save(tiles / f"{name}_{k:03d}.png")
        counts[tiles] += 1
  for folder, count in counts.items():
    print(f"{folder}: {count} images")
  for kind in SPLITS if args.tile else ():
    packed = args.output / f"tiles_{kind}.array_record"
    count, _ = pack_images([args.output / "tiles" / kind], packed)
    print(f"{packed}: {count} tiles")


if __name__ == "__main__":
  main()
