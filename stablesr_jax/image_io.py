"""Reads and writes pictures with what belongs to them: alpha, colour profile, EXIF, orientation."""

import dataclasses
import io
import os
import pathlib
import stat
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, features

from stablesr_jax.errors import UserError, first_line
from stablesr_jax.files import atomic_write

# Of large pictures and damaged EXIF, in lines that name no file; such pictures are read all the same. Here, so that it
# holds in the processes that read training images, too.
warnings.filterwarnings("ignore", module=r"PIL\.")

_HAS_AVIF = features.check("avif")
_AVIF = (".avif",) if _HAS_AVIF else ()
# Suffixes that `read_image` reads and that `write_image` writes, in lower case.
IMAGE_SUFFIXES = (*_AVIF, ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
WRITABLE_SUFFIXES = (*_AVIF, ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_FORMATS = {".avif": "AVIF", ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF"}
_FORMATS[".tiff"] = "TIFF"
_OPTIONS: dict[str, dict[str, Any]] = {
  "AVIF": {"quality": 90, "subsampling": "4:4:4"},
  "JPEG": {"quality": 95, "subsampling": 0},  # 0 is 4:4:4
  "PNG": {},
  "TIFF": {},  # uncompressed: with compression Pillow cannot write all of EXIF
  "WEBP": {"quality": 95},
}
_LONGEST_SIDE = {"JPEG": 65535, "WEBP": 16383, "AVIF": 65536}
_MOST_TIFF_BYTES = 2**32 - 2**24  # of pixels, uncompressed; places in the file have 32 bits
_MAX_JPEG_EXIF = 65533  # bytes in one segment

_ORIENTATION = 0x0112
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
# A TIFF file's tags say how its pixels are stored, too; these are the ones about the picture.
_DESCRIPTIVE_TAGS = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture, upright.

  Attributes:
    rgb: The pixels (H, W, 3), float32 in [0, 1], as encoded (sRGB or the space of `icc`, not linear light).
    alpha: The opacity (H, W), float32 in [0, 1], not premultiplied; None if the picture is opaque.
    icc: The RGB colour profile, None if there is none.
    exif: EXIF data as Pillow takes them, None if there are none.
    bit_depth: The number of bits of each channel in the file, 8 or 16.
  """

  rgb: np.ndarray
  alpha: np.ndarray | None = None
  icc: bytes | None = None
  exif: bytes | None = None
  bit_depth: int = 8


def read_image(path: str | pathlib.Path) -> Picture:
  """Reads a picture: PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF; the first frame where there are several.

  The orientation in EXIF is applied and its tag removed. Greyscale becomes three equal channels, a palette its
  colours, CMYK is turned to sRGB through its profile. 16 bits are kept for greyscale only: Pillow reads 16-bit
  colour as 8-bit.

  Raises:
    UserError: there is no such file.
    UserError: it is no picture, is damaged, has values out of range, or more pixels than Pillow's guard allows
      (twice `PIL.Image.MAX_IMAGE_PIXELS`).
  """
  return decode_image(read_file(path), str(path))


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


def decode_image(data: bytes, name: str) -> Picture:
  """The picture in an image file's bytes, as `read_image` has it.

  Args:
    name: What error messages call it.

  Raises:
    UserError: as `read_image`.
  """
  try:
    if not data:
      raise UserError("the file is empty")
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      exif = _read_exif(image)
      return _decode(_upright(image), exif)
  except Image.UnidentifiedImageError as error:
    raise UserError(f"{name}: not an image, or of a kind that is not supported") from error
  except Image.DecompressionBombError as error:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
    raise UserError(f"{name}: more than {limit} megapixels (raise PIL.Image.MAX_IMAGE_PIXELS to allow it)") from error
  except MemoryError:
    raise
  except Exception as error:  # Decoders answer damaged files with errors of any kind.
    raise UserError(f"{name}: cannot be read ({first_line(error)})") from error


def write_image(path: str | pathlib.Path, picture: Picture) -> None:
  """Writes a picture in the format of the path's suffix: PNG, JPEG (95, 4:4:4), WebP, TIFF or AVIF.

  Values are clipped to [0, 1] and written in 8 bits, whatever `bit_depth` says. Colour profile and EXIF are written
  too, with the picture's new size in EXIF; alpha is laid over white where the format has none (JPEG). The file
  appears under its name when it is complete, in place of an older one. Its folder must exist.

  Raises:
    UserError: the folder does not exist.
    UserError: the suffix is not one of `WRITABLE_SUFFIXES`, the picture is too large for the format, has shapes that
      do not fit, or values that are not finite; or the file cannot be written.
  """
  path = pathlib.Path(path)
  suffix = path.suffix.lower()
  if suffix not in WRITABLE_SUFFIXES:
    raise UserError(f"{path}: cannot write {suffix or 'a file without suffix'} (use {', '.join(WRITABLE_SUFFIXES)})")
  if not path.parent.is_dir():
    raise UserError(f"{path}: no such folder: {path.parent}")
  if path.is_dir():
    raise UserError(f"{path}: is a folder")
  kind = _FORMATS[suffix]
  try:
    pixels = _encode(picture, with_alpha=kind != "JPEG")
    options = dict(_OPTIONS[kind])
    if picture.icc:
      options["icc_profile"] = picture.icc
    exif = _with_size(picture.exif, pixels.shape[1], pixels.shape[0])
    if exif and kind == "JPEG" and len(exif) > _MAX_JPEG_EXIF:
      warnings.warn(f"{path}: EXIF of {len(exif)} bytes does not fit a JPEG and is left out", stacklevel=2)
    elif exif:
      options["exif"] = exif
  except ValueError as error:
    raise UserError(f"{path}: {first_line(error)}") from error
  require_holds(path, *pixels.shape[:2])

  try:
    with atomic_write(path) as temporary, open(temporary, "xb") as f:
      Image.fromarray(pixels).save(f, format=kind, **options)
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(f"{path}: cannot be written ({first_line(error)})") from error


def require_holds(path: pathlib.Path, height: int, width: int) -> None:
  """Raises UserError if the format of the path's suffix cannot hold a picture of this size."""
  kind = _FORMATS.get(path.suffix.lower(), "")
  limit = _LONGEST_SIDE.get(kind)
  if limit and max(height, width) > limit:
    raise UserError(f"{path}: {kind} holds at most {limit} pixels a side; use .png or .tif")
  if kind == "TIFF" and 4 * height * width > _MOST_TIFF_BYTES:
    raise UserError(f"{path}: TIFF holds at most 4 GB; use .png")


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


def _decode(image: Image.Image, exif: bytes | None) -> Picture:
  """The picture of a loaded, upright image."""
  icc = image.info.get("icc_profile")
  if image.mode == "F" or image.mode.startswith("I"):
    grey, alpha, bit_depth = _decode_deep_grey(image)
    rgb = np.repeat(grey[..., None], 3, axis=2)
  else:
    bit_depth, alpha = 8, None
    if image.mode == "CMYK":
      image, icc = _cmyk_to_srgb(image, icc), None
    elif image.mode == "La":  # premultiplied; Pillow turns it to LA only
      image = image.convert("LA")
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    pixels = np.asarray(image)
    rgb = pixels[..., :3].astype(np.float32) / 255
    if image.mode == "RGBA":
      alpha = pixels[..., 3].astype(np.float32) / 255
  # A greyscale profile does not describe what is now RGB; the colour space is named at byte 16 of a profile.
  if icc is not None and icc[16:20] != b"RGB ":
    icc = None
  return Picture(rgb, alpha, icc, exif, bit_depth)


def _decode_deep_grey(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, int]:
  """(grey, alpha or None, bit depth) of 16-bit, 32-bit and floating-point greyscale."""
  values = np.asarray(image)
  alpha = None
  if isinstance(transparent := image.info.get("transparency"), int):
    alpha = (values != transparent).astype(np.float32)
  top = 1 if image.mode == "F" else 65535
  if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= top):
    raise UserError(f"values outside 0 to {top} in a picture of mode {image.mode}")
  return values.astype(np.float32) / np.float32(top), alpha, 16


def _cmyk_to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
  if icc:
    try:
      converted = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), outputMode="RGB"
      )
      if converted is not None:
        return converted
    except (ImageCms.PyCMSError, OSError):
      pass  # A damaged profile: do as without one.
  return image.convert("RGB")


def _read_exif(image: Image.Image) -> bytes | None:
  """EXIF without orientation; None if there is none, or none that can be parsed."""
  try:
    tags = image.getexif()
    if image.format == "TIFF":
      tags = _descriptive(tags)
    if not tags:
      return None
    orientation = tags.get(_ORIENTATION)
    raw = image.info.get("exif")
    if raw and orientation is None:
      return raw  # as it is: writing tags anew would move what makers' notes point to
    kept = Image.Exif()  # a copy: `tags` belong to the image, which is yet to be turned
    kept.load(tags.tobytes())
    kept.pop(_ORIENTATION, None)
    return kept.tobytes() if kept else None
  except Exception:  # Damaged EXIF raises errors of any kind, and is no reason to refuse the picture.
    return None


def _upright(image: Image.Image) -> Image.Image:
  try:
    return ImageOps.exif_transpose(image)
  except Exception:  # As above.
    return image


def _descriptive(tags: Image.Exif) -> Image.Exif:
  """The tags of a TIFF file that describe the picture, and its orientation."""
  kept = Image.Exif()
  for tag in (*_DESCRIPTIVE_TAGS, _ORIENTATION):
    if tag in tags:
      kept[tag] = tags[tag]
  for ifd in (_EXIF_IFD, _GPS_IFD):
    if ifd in tags and (nested := tags.get_ifd(ifd)):
      kept[ifd] = dict(nested)
  return kept


def _with_size(exif: bytes | None, width: int, height: int) -> bytes | None:
  """EXIF whose pixel dimensions, if it has any, are the given ones."""
  if not exif:
    return None
  try:
    tags = Image.Exif()
    tags.load(exif)
    details = tags.get_ifd(_EXIF_IFD)
    stored = details.get(_PIXEL_WIDTH), details.get(_PIXEL_HEIGHT)
    if stored in ((None, None), (width, height)):
      return exif
    details[_PIXEL_WIDTH], details[_PIXEL_HEIGHT] = width, height
    return tags.tobytes()
  except Exception:  # As in `_read_exif`: no reason to lose the picture.
    return exif


def _encode(picture: Picture, with_alpha: bool) -> np.ndarray:
  """(H, W, 3 or 4) uint8."""
  rgb, alpha = picture.rgb, picture.alpha
  if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
    raise UserError(f"rgb of shape {rgb.shape}: expected (H, W, 3)")
  if alpha is not None and alpha.shape != rgb.shape[:2]:
    raise UserError(f"alpha of shape {alpha.shape} does not fit rgb of shape {rgb.shape}")
  if not (np.isfinite(rgb).all() and (alpha is None or np.isfinite(alpha).all())):
    raise UserError("the picture has values that are not finite (NaN or infinity)")
  if alpha is not None and with_alpha:
    rgb = np.concatenate([rgb, alpha[..., None]], axis=2)
  elif alpha is not None:
    opacity = np.clip(alpha, 0, 1)[..., None]
    rgb = np.clip(rgb, 0, 1) * opacity + (1 - opacity)
  from stablesr_jax.pixels import to_uint8  # Late: it imports JAX, and `--help` should answer at once.

  return to_uint8(rgb)
