"""Reads picture files: the right pixels, or one line that says why not."""

import io
import os
import pathlib
import stat
import warnings
from typing import Any

from PIL import Image

from stablesr_jax.errors import UserError, first_line
from stablesr_jax.images import metadata, png, tiff, vips
from stablesr_jax.images.conversion import Pixels, from_array, from_pillow
from stablesr_jax.images.kinds import IMAGE_SUFFIXES, require_readable, sniff
from stablesr_jax.images.picture import Picture

# Of large pictures and damaged EXIF, in lines that name no file; such pictures are read all the same. Here, so that it
# holds in the processes that read training images, too.
warnings.filterwarnings("ignore", module=r"PIL\.")

# In other formats the file has its own way to say it, and XMP does not count.
_TURNED_BY_XMP = ("JPEG", "PNG", "TIFF", "WEBP")
_SRGB_GAMMA = 0.45455


def read_image(path: str | pathlib.Path) -> Picture:
  """Reads a picture: PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, ICO, and with their packages HEIC and JPEG XL.

  The file's first bytes say what it is, not its name. Where it has several pictures, the first is read that is no
  smaller copy of another. Its orientation in EXIF, or else in XMP, is applied and that tag removed. Greyscale becomes
  three equal channels, a palette its colours, CMYK is turned to sRGB through its profile. 16 bits are kept in PNG and
  TIFF. Damaged metadata are left out.

  Raises:
    UserError: there is no such file.
    UserError: it is no picture, is damaged, has pixels of a kind that is not supported, values out of range, or more
      pixels than Pillow's guard allows (twice `PIL.Image.MAX_IMAGE_PIXELS`).
  """
  return decode_image(read_file(path), str(path), thorough=True)


def read_file(path: str | pathlib.Path) -> bytes:
  """Reads an image file as it is.

  Raises:
    UserError: there is no such file, it cannot be read, or it is none: a folder, or a pipe, which may never end.
  """
  path = pathlib.Path(path)
  try:
    kind = path.stat().st_mode
    if stat.S_ISDIR(kind):
      raise UserError(f"{path}: is a folder, not an image")
    if not stat.S_ISREG(kind):
      raise UserError(f"{path}: is no regular file")
    return path.read_bytes()
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file") from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def decode_image(data: bytes, name: str, *, thorough: bool = False) -> Picture:
  """The picture in an image file's bytes, as `read_image` has it.

  Args:
    name: What error messages call it.
    thorough: Whether a JPEG is decoded a second time to find out if it is damaged, which is then among the notes: most
      damaged ones are decoded without a word.

  Raises:
    UserError: as `read_image`.
  """
  if not data:
    raise UserError(f"{name}: cannot be read (the file is empty)")
  try:
    format = require_readable(sniff(data))
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  try:
    pixels, info, notes = {"PNG": _png, "TIFF": _tiff}.get(format, _with_pillow)(data, format)
    if thorough and format == "JPEG" and (complaint := vips.jpeg_complaint(data)):
      notes.append(f"may be damaged ({complaint})")
    return _picture(pixels, info, notes, format)
  except Image.DecompressionBombError as error:
    raise UserError(f"{name}: {_too_large()}") from error
  except MemoryError:
    raise
  except Exception as error:  # Decoders answer damaged files with errors of any kind.
    raise UserError(f"{name}: cannot be read ({first_line(error)})") from error


Decoded = tuple[Pixels, dict[str, Any], list[str]]


def _png(data: bytes, format: str) -> Decoded:
  contents = png.parse(data)
  _require_reasonable(contents.width, contents.height)
  notes = []
  if contents.info.get("frames", 1) > 1:
    notes.append(f"has {contents.info['frames']} frames; the first is taken")
  gamma = contents.info.get("gamma", _SRGB_GAMMA)
  if abs(gamma / _SRGB_GAMMA - 1) > 0.05 and "icc_profile" not in contents.info:
    notes.append(f"is encoded with a gamma of {gamma:g}, which is not kept")
  # Pillow reads colours of 16 bits as 8, and takes a transparent level below 8 bits for another.
  if contents.depth == 16 or contents.keyed:
    return from_array(vips.load(contents.pixels, "png")), contents.info, notes
  pixels, _, _ = _with_pillow(contents.pixels, format)
  return pixels, contents.info, notes


def _tiff(data: bytes, format: str) -> Decoded:
  contents = tiff.parse(data)
  _require_reasonable(*contents.size)
  notes = [f"has {contents.more} more pages; the first is taken"] if contents.more else []
  pixels, turned = tiff.decode(contents)
  return pixels, {**contents.info, "exif": contents.data, "turned": turned}, notes


def _with_pillow(data: bytes, format: str) -> Decoded:
  with Image.open(io.BytesIO(data), formats=[format]) as image:
    notes = ["has more frames; the first is taken"] if _has_more(image) else []
    image.load()
    info: dict[str, Any] = {str(key): value for key, value in image.info.items()}
    if image.format in ("JPEG", "MPO") and info.get("jfif_unit") not in (1, 2):
      info.pop("dpi", None)  # Pillow's guess
    return from_pillow(image), info, notes


def _has_more(image: Image.Image) -> bool:
  try:
    return bool(getattr(image, "is_animated", False))
  except Exception:  # Damage behind the first frame is no reason to refuse that.
    return True


def _picture(pixels: Pixels, info: dict[str, Any], notes: list[str], format: str) -> Picture:
  exif, turn = metadata.clean_exif(info.get("exif"), tiff=format == "TIFF")
  xmp, turn_by_xmp = metadata.clean_xmp(info.get("xmp"))
  if format == "TIFF":  # read from the tags themselves
    turn = info["orientation"] if info.get("orientation") in range(1, 9) else 1
  if turn == 1 and format in _TURNED_BY_XMP:
    turn = turn_by_xmp
  if dpi := metadata.clean_density(info.get("dpi")) or metadata.density(exif):
    dpi = (dpi[1], dpi[0]) if turn > 4 else dpi
  if info.get("turned"):
    turn = 1
  rgb = metadata.upright(pixels.rgb, turn)
  alpha = None if pixels.alpha is None else metadata.upright(pixels.alpha, turn)
  icc = None if pixels.converted else metadata.clean_icc(info.get("icc_profile"))
  return Picture(rgb, alpha, icc, exif, xmp, dpi, pixels.bit_depth, tuple(notes))


def _require_reasonable(width: int, height: int) -> None:
  """Refuses a picture that would unpack to gigabytes, before anything is unpacked."""
  if width < 1 or height < 1:
    raise UserError(f"is damaged (a size of {width}x{height})")
  if Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS:
    raise Image.DecompressionBombError


def _too_large() -> str:
  limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
  return f"more than {limit} megapixels (raise PIL.Image.MAX_IMAGE_PIXELS to allow it)"


def image_size(path: pathlib.Path) -> tuple[int, int] | None:
  """The height and width of a picture as it is shown, from its file's header; None if that does not say."""
  try:
    format = require_readable(sniff(_head(path)))
    with Image.open(path, formats=[format]) as image:
      width, height = image.size
      turned = image.getexif().get(metadata.ORIENTATION) in (5, 6, 7, 8)
  except Exception:  # Decoders answer damaged files with errors of any kind. Why is told when it is read.
    return None
  return (width, height) if turned else (height, width)


def _head(path: pathlib.Path) -> bytes:
  """What `sniff` looks at."""
  with path.open("rb") as file:
    return file.read(4096)


def list_images(folder: str | pathlib.Path, recursive: bool = True) -> list[pathlib.Path]:
  """The files in `folder` with one of `IMAGE_SUFFIXES`, sorted; hidden files and folders are skipped.

  Raises:
    UserError: there is no such folder.
    UserError: it is a file.
  """
  folder = pathlib.Path(folder)
  if not folder.exists():
    raise UserError(f"{folder}: no such folder")
  if not folder.is_dir():
    raise UserError(f"{folder}: is a file, not a folder")
  found = []
  for root, folders, files in os.walk(folder):
    folders[:] = [name for name in folders if recursive and not name.startswith(".")]
    found += [pathlib.Path(root, name) for name in files if not name.startswith(".")]
  return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)
