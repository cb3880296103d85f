"""Prepares freely licensed photographs from Debian packages as training data.

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 plasma-workspace-wallpapers gcompris-qt-data ...
    dpkg -x lomiri-wallpapers-16.04_*.deb packages/lomiri-wallpapers-16.04     # and so on, one folder a package
    python examples/training_photographs.py packages photographs --tile 320

`training_photographs.tsv` lists every photograph with its package, the Debian release that has it, author, licence and
checksum; those of gcompris-qt-data lie in Qt resource files, and the READMEs beside them there say whose they are. Each
is written shrunk to several sizes, so that its details are crisp at every size a crop is taken from, into `train` or
`validation` of the output folder. `--tile` also cuts the copies into small squares (`tiles/train`,
`tiles/validation`), which decode far faster than whole photographs, and packs them (`tiles_train.array_record`, ...)
for `data.SourceConfig("packed", ...)`. The same packages give the same pixels.
"""

import argparse
import csv
import dataclasses
import hashlib
import pathlib
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from stablesr_jax.data import pack_images
from stablesr_jax.images import decode_image

LIST = pathlib.Path(__file__).with_suffix(".tsv")
SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Photograph:
  """A row of the list.

  Attributes:
    path: in the package; "FILE.rcc:PATH" is a file in a Qt resource file.
    split: "train" or "validation".
    shrink: shrunk by less than this factor, it still shows its JPEG or WebP blocks and its camera's interpolation.
  """

  package: str
  debian: str
  path: str
  author: str
  licence: str
  split: str
  shrink: float
  sha256: str

  @property
  def name(self) -> str:
    """Unique among the photographs: some packages call every file by its size."""
    parts = pathlib.PurePosixPath(self.path).parts
    if "contents" in parts:
      return parts[parts.index("contents") - 1]
    stem = pathlib.PurePosixPath(self.path).stem
    return f"{pathlib.PurePosixPath(self.path.partition(':')[0]).stem}_{stem}" if ":" in self.path else stem


def read_list(path: pathlib.Path = LIST) -> list[Photograph]:
  with open(path, newline="", encoding="utf-8") as file:
    rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return [Photograph(shrink=float(row.pop("shrink")), **row) for row in rows]


def read_photograph(photograph: Photograph, packages: pathlib.Path) -> Image.Image:
  """The photograph, upright, as 8-bit RGB.

  Raises:
    ValueError: the file is missing, or is not the listed one.
  """
  inside, _, member = photograph.path.partition(":")
  path = packages / photograph.package / inside
  if not path.is_file():
    raise ValueError(f"{path}: no such file; unpack {photograph.package} of Debian {photograph.debian} there")
  data = path.read_bytes()
  if member:
    data = read_resources(data).get(member, b"")
  if hashlib.sha256(data).hexdigest() != photograph.sha256:
    raise ValueError(f"{path}: not the listed photograph; take {photograph.package} of Debian {photograph.debian}")
  return Image.fromarray(np.round(decode_image(data, str(path)).rgb * 255).astype(np.uint8))


def read_resources(data: bytes) -> dict[str, bytes]:
  """The files of a Qt resource file (.rcc, versions 1 to 3) by their paths; those that zstd compressed are left out.

  After "qres" it has, big-endian, a version and the offsets of three tables: nodes of a tree, contents, and names.
  """
  version, nodes, contents, names = struct.unpack_from(">4I", data, 4)
  node_size = 14 if version < 2 else 22  # later ones end with a date
  files = {}

  def visit(number: int, folder: str) -> None:
    name, flags = struct.unpack_from(">IH", data, nodes + number * node_size)
    (length,) = struct.unpack_from(">H", data, names + name)
    start = names + name + 6  # a hash is between
    path = folder + data[start : start + 2 * length].decode("utf-16-be") if number else ""
    if flags & 2:  # a folder
      count, first = struct.unpack_from(">II", data, nodes + number * node_size + 6)
      for child in range(first, first + count):
        visit(child, f"{path}/" if path else "")
    elif not flags & 4:
      (offset,) = struct.unpack_from(">I", data, nodes + number * node_size + 10)
      (size,) = struct.unpack_from(">I", data, contents + offset)
      content = data[contents + offset + 4 : contents + offset + 4 + size]
      files[path] = zlib.decompress(content[4:]) if flags & 1 else content

  visit(0, "")
  return files


def shrunk_copies(image: Image.Image, shorter_sides: list[int], least_shrinking: float) -> Iterator[Image.Image]:
  """Lanczos copies with these shorter sides, or one as large as may be where all would shrink it by too little."""
  factors = [min(image.size) / side for side in shorter_sides]
  for factor in [factor for factor in factors if factor >= least_shrinking] or [least_shrinking]:
    yield image.resize((round(image.width / factor), round(image.height / factor)), Image.Resampling.LANCZOS)


def cut_tiles(image: Image.Image, side: int, least_detail: float) -> Iterator[Image.Image]:
  """Squares, spread evenly and overlapping by less than half; skies and blurred backgrounds are passed over.

  Args:
    least_detail: least mean gradient magnitude of the luma, in 8-bit levels a pixel.
  """
  if min(image.size) < side:
    return
  columns, rows = (np.linspace(0, length - side, round(length / side)).round().astype(int) for length in image.size)
  for top in rows.tolist():
    for left in columns.tolist():
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
    for copy in shrunk_copies(image, args.shorter_sides, photograph.shrink):
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
