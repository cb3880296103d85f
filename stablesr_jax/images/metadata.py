"""What belongs to a picture beside its pixels: EXIF, XMP, colour profile, density, orientation.

Damaged metadata raise errors of any kind in their readers, and are no reason to lose a picture: they are left out.
"""

import json
import re
from typing import Any

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
_X_DENSITY, _Y_DENSITY, _DENSITY_UNIT = 0x011A, 0x011B, 0x0128
_INCH, _CENTIMETRE = 2, 3
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_USER_COMMENT, _HISTORY = 0x9286, 0x9213
_ASCII = b"ASCII\0\0\0"  # how a user's comment is encoded
# A TIFF file's tags say how its pixels are stored, too; these are the ones about the picture.
_DESCRIPTIVE_TAGS = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
_XMP_ORIENTATION = re.compile(rb"""\s*tiff:Orientation\s*=\s*["'](\d)["']|<tiff:Orientation>(\d)</tiff:Orientation>""")


def clean_exif(raw: bytes | None, tiff: bool = False) -> tuple[bytes | None, int]:
  """EXIF without orientation, None if there is none or none that can be parsed; and the orientation, 1 if unknown.

  Args:
    raw: EXIF data, or a whole TIFF file.
    tiff: Whether it is the latter, of whose tags those are kept that describe the picture.
  """
  try:
    if not raw:
      return None, 1
    tags = Image.Exif()
    tags.load(raw)
    if tiff:
      tags = _descriptive(tags)
    if not tags:
      return None, 1
    orientation = tags.get(ORIENTATION)
    if orientation is None and not tiff:
      return raw, 1  # as it is: writing tags anew would move what makers' notes point to
    kept = Image.Exif()
    kept.load(tags.tobytes())
    kept.pop(ORIENTATION, None)
    return (kept.tobytes() if kept else None), orientation if orientation and orientation in range(1, 9) else 1
  except Exception:
    return None, 1


def clean_xmp(raw: Any) -> tuple[bytes | None, int]:
  """XMP without orientation, and the orientation, 1 if unknown."""
  if not isinstance(raw, bytes) or not raw.strip(b"\0 \n\r\t"):
    return None, 1
  found = _XMP_ORIENTATION.search(raw)
  orientation = int(found[1] or found[2]) if found else 1
  return _XMP_ORIENTATION.sub(b"", raw), orientation if orientation in range(1, 9) else 1


def clean_icc(raw: Any) -> bytes | None:
  """The profile, if it is one of RGB colours: a header, a mark at byte 36, the colour space's name at byte 16."""
  if isinstance(raw, bytes) and len(raw) >= 132 and raw[36:40] == b"acsp" and raw[16:20] == b"RGB ":
    return raw
  return None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Turns (H, W, ...) as EXIF's orientation, 1 to 8, asks for."""
  match orientation:
    case 2:
      turned = pixels[:, ::-1]
    case 3:
      turned = pixels[::-1, ::-1]
    case 4:
      turned = pixels[::-1]
    case 5:
      turned = pixels.swapaxes(0, 1)
    case 6:
      turned = np.rot90(pixels, -1)
    case 7:
      turned = np.rot90(pixels, 2).swapaxes(0, 1)
    case 8:
      turned = np.rot90(pixels)
    case _:
      return pixels
  return np.ascontiguousarray(turned)


def density(exif: bytes | None) -> tuple[float, float] | None:
  """The pixels an inch that EXIF names."""
  try:
    if not exif:
      return None
    tags = Image.Exif()
    tags.load(exif)
    factor = {_INCH: 1.0, _CENTIMETRE: 2.54}.get(tags.get(_DENSITY_UNIT, _INCH))
    if factor is None or _X_DENSITY not in tags:
      return None
    x = float(tags[_X_DENSITY]) * factor
    return clean_density((x, float(tags.get(_Y_DENSITY, tags[_X_DENSITY])) * factor))
  except Exception:
    return None


def clean_density(dpi: Any) -> tuple[float, float] | None:
  """The pixels an inch, if they are such."""
  try:
    x, y = float(dpi[0]), float(dpi[1])
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None
  except (TypeError, ValueError, IndexError, ZeroDivisionError):
    return None


def exif_to_write(
  exif: bytes | None, width: int, height: int, dpi: tuple[float, float] | None, record: dict[str, Any] | None
) -> bytes | None:
  """EXIF with the pixel dimensions given, where it has any; and with density and record, where these are given.

  The record is compact JSON in the user's comment, or where that is taken, in the history.
  """
  try:
    tags = Image.Exif()
    if exif:
      tags.load(exif)
    details, changed = tags.get_ifd(_EXIF_IFD), False
    stored = details.get(_PIXEL_WIDTH), details.get(_PIXEL_HEIGHT)
    if stored not in ((None, None), (width, height)):
      details[_PIXEL_WIDTH], details[_PIXEL_HEIGHT] = width, height
      changed = True
    if dpi and _X_DENSITY not in tags:
      tags[_X_DENSITY], tags[_Y_DENSITY], tags[_DENSITY_UNIT] = dpi[0], dpi[1], _INCH
      changed = True
    if record is not None:
      text = json.dumps(record, separators=(",", ":"))
      comment = details.get(_USER_COMMENT, b"")
      if isinstance(comment, bytes) and (not comment.strip(b"\0 ASCII") or b'{"stablesr_jax"' in comment):
        details[_USER_COMMENT] = _ASCII + text.encode()
      else:
        tags[_HISTORY] = text
      tags[_EXIF_IFD] = dict(details)
      changed = True
    return tags.tobytes() if changed else exif
  except Exception:
    if exif and record is not None:  # The damaged EXIF is no reason to lose the record.
      return exif_to_write(None, width, height, dpi, record)
    return exif


def _descriptive(tags: Image.Exif) -> Image.Exif:
  """The tags of a TIFF file that describe the picture, and its orientation."""
  kept = Image.Exif()
  for tag in (*_DESCRIPTIVE_TAGS, ORIENTATION):
    if tag in tags:
      kept[tag] = tags[tag]
  for ifd in (_EXIF_IFD, _GPS_IFD):
    if ifd in tags and (nested := tags.get_ifd(ifd)):
      kept[ifd] = dict(nested)
  return kept
