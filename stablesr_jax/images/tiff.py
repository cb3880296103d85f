"""The tags of TIFF files: which of the pictures in a file is the picture, and how its pixels are stored."""

import dataclasses
import io
import struct
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from stablesr_jax.errors import UserError
from stablesr_jax.images import vips
from stablesr_jax.images.conversion import Pixels, cmyk, from_array, from_pillow

_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR, _SUBIFDS = 273, 274, 277, 278, 279, 284, 330
_INK_SET, _EXTRA, _FORMAT, _SUBSAMPLING, _XMP, _ICC = 332, 338, 339, 530, 700, 34675
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_REDUCED, _MASK = 1, 4
_WHITE_IS_0, _BLACK_IS_0, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_UNSIGNED, _FLOAT = 1, 3
_PREMULTIPLIED, _ALPHA = 1, 2
_JPEG, _OLD_JPEG, _FAX = 7, 6, (2, 3, 4)
_NAMES = {
  4: "a transparency mask",
  8: "CIELab colours",
  9: "ICCLab colours",
  10: "ITULab colours",
  32803: "a camera's raw file (DNG)",
  32844: "LogL brightness",
  32845: "LogLuv colours",
  34892: "a camera's raw file (linear DNG)",
}
_MOST_PAGES = 10000

MOST_BYTES = 2**32 - 2**24
"""Of pixels, uncompressed; places in the file have 32 bits."""


@dataclasses.dataclass(frozen=True)
class Contents:
  """The picture of a TIFF file.

  Attributes:
    data: The file, with the picture as its first one.
    tags: Its tags.
    more: How many other pictures there are, smaller copies and masks not counted.
  """

  data: bytes
  tags: Any
  more: int

  @property
  def size(self) -> tuple[int, int]:
    """Width and height."""
    return int(self.tags.get(_WIDTH, 0)), int(self.tags.get(_HEIGHT, 0))

  @property
  def info(self) -> dict[str, Any]:
    """ "icc_profile", "xmp" and "orientation"."""
    names = {"icc_profile": _ICC, "xmp": _XMP, "orientation": _ORIENTATION}
    return {name: self.tags[tag] for name, tag in names.items() if tag in self.tags}


def parse(data: bytes) -> Contents:
  """Finds the picture: the first one that is no smaller copy of another and no mask; it may be below a small one.

  Raises:
    UserError: The file is damaged, or has no such picture.
  """
  big = data[2:4] in (b"+\0", b"\0+")
  header = data[: 16 if big else 8]
  order = "<" if data[:2] == b"II" else ">"
  offset_format = order + ("Q" if big else "L")
  try:
    (offset,) = struct.unpack(offset_format, header[8:16] if big else header[4:8])
    pages = _directories(data, header, [offset])
    whole = [page for page in pages if _is_picture(page[1])]
    if not whole:
      below = [at for _, tags in pages for at in _offsets(tags.get(_SUBIFDS, ()))]
      whole = [page for page in _directories(data, header, below, follow=False) if _is_picture(page[1])]
    if not whole and pages:
      whole = pages[:1]
  except UserError:
    raise
  except Exception as error:  # Pillow's reader answers damage with errors of any kind.
    raise UserError("is damaged (its directory of tags)") from error
  if not whole:
    raise UserError("is damaged (no directory of tags)")
  (at, tags), place = whole[0], 8 if big else 4
  if at != offset:
    packed = struct.pack(offset_format, at)
    data = data[:place] + packed + data[place + len(packed) :]
  return Contents(data, tags, len(whole) - 1)


def _directories(data: bytes, header: bytes, starts: list[int], follow: bool = True) -> list[tuple[int, Any]]:
  """(where it is, its tags) of directories; also of those behind each."""
  found, seen, fp = [], set(), io.BytesIO(data)
  for start in starts:
    at = start
    while 0 < at < len(data) and at not in seen and len(found) < _MOST_PAGES:
      seen.add(at)
      fp.seek(at)
      tags = TiffImagePlugin.ImageFileDirectory_v2(header)
      tags.load(fp)
      if found and not len(tags):
        break
      found.append((at, tags))
      at = tags.next if follow else 0
  return found


def _offsets(value: Any) -> tuple[int, ...]:
  return tuple(value) if isinstance(value, tuple) else (value,)


def _is_picture(tags: Any) -> bool:
  return not (tags.get(_SUBFILE, 0) & (_REDUCED | _MASK) or tags.get(_OLD_SUBFILE, 1) == 2)


def decode(contents: Contents) -> tuple[Pixels, bool]:
  """The pixels as the tags say that they are stored, and whether they are upright already.

  Raises:
    UserError: They are of a kind that is not supported, or damaged.
  """
  tags, info = contents.tags, contents.info
  if _PHOTOMETRIC not in tags:
    raise UserError("does not say what its colours are (photometric interpretation)")
  photometric, samples = tags[_PHOTOMETRIC], tags.get(_SAMPLES, 1)
  bits = set(_offsets(tags.get(_BITS, 1)))
  formats = set(_offsets(tags.get(_FORMAT, _UNSIGNED))) - {4}  # undefined: as if it were not said
  extra = _offsets(tags.get(_EXTRA, ()))
  if photometric in _NAMES or not 0 <= photometric <= _YCBCR:
    name = _NAMES.get(photometric, f"of photometric interpretation {photometric}")
    raise UserError(f"is {name}; not supported")
  if len(bits) != 1 or len(formats) > 1:
    raise UserError("has samples of different kinds; not supported")
  depth, kind = bits.pop(), formats.pop() if formats else _UNSIGNED
  if kind not in (_UNSIGNED, _FLOAT):
    raise UserError(f"has samples that are signed or complex ({depth} bits); not supported")
  if (kind, depth) not in {(_UNSIGNED, n) for n in (1, 2, 4, 8, 16, 32)} | {(_FLOAT, 16), (_FLOAT, 32)}:
    raise UserError(f"has samples of {depth} bits{' (floats)' if kind == _FLOAT else ''}; not supported")
  if photometric == _CMYK and (tags.get(_INK_SET, 1) != 1 or samples < 4):
    raise UserError("has inks other than CMYK; not supported")
  if photometric == _YCBCR and samples > 1:
    compression = tags.get(_COMPRESSION, 1)
    if compression == _OLD_JPEG or (compression != _JPEG and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1)):
      raise UserError("has YCbCr colours, stored in an old or rare way; not supported")
  colours = {_RGB: 3, _YCBCR: 3 if samples > 1 else 1, _CMYK: 4}.get(photometric, 1)
  if samples < colours:
    raise UserError(f"has {samples} channels for {colours} colours")
  if photometric == _WHITE_IS_0 and (samples > 1 or kind == _FLOAT or depth > 16):
    raise UserError("is one in which 0 is white, of a rare kind; not supported")
  if depth > 8 and photometric in (_PALETTE, _YCBCR):
    raise UserError(f"has colours of {depth} bits in a rare kind; not supported")
  # A palette of 8 bits, as old programs wrote them where 16 are the rule.
  shallow = photometric == _PALETTE and samples == 1 and max(tags.get(320, (65535,))) < 256
  alpha = colours if samples > colours and (not extra or extra[0] in (_PREMULTIPLIED, _ALPHA)) else None
  # Of fax Pillow takes whatever was decoded before the damage.
  fax = tags.get(_COMPRESSION, 1) in _FAX and samples == 1
  if depth > 8 or shallow or fax or (photometric == _CMYK and alpha):
    if photometric == _CMYK and alpha and extra[:1] != (_ALPHA,):
      raise UserError("has CMYK with alpha of a rare kind; not supported")
    values = vips.load(contents.data, "tiff")
    if photometric == _CMYK:
      return cmyk(values[..., :5] if alpha else values[..., :4], info.get("icc_profile")), False
    if shallow:
      return from_array(values[..., :3]), False
    return from_array(values[..., : colours + 1] if alpha else values[..., :colours]), False
  with Image.open(io.BytesIO(contents.data), formats=["TIFF"]) as image:
    image.load()  # turns it, too
    return from_pillow(image), True


def encode(
  pixels: np.ndarray, *, icc: bytes | None, exif: bytes | None, xmp: bytes | None, dpi: tuple[float, float] | None
) -> bytes:
  """A TIFF of (H, W, 3 or 4), uint8 or uint16, uncompressed: all programs read that."""
  height, width, channels = pixels.shape
  # Little-endian, as are the pixels below.
  tags = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\0\0\0\0")
  if exif:
    given = Image.Exif()
    given.load(exif)
    for tag, value in given.items():
      tags[tag] = value
    for ifd in (_EXIF_IFD, _GPS_IFD):
      if nested := given.get_ifd(ifd):
        tags[ifd] = dict(nested)
  values: dict[int, Any] = {
    _WIDTH: width,
    _HEIGHT: height,
    _BITS: (8 * pixels.dtype.itemsize,) * channels,
    _COMPRESSION: 1,
    _PHOTOMETRIC: _RGB,
    _SAMPLES: channels,
    _ROWS: height,
    _STRIPS: 0,
    _STRIP_BYTES: pixels.nbytes,
    _PLANAR: 1,
  }
  if channels == 4:
    values[_EXTRA] = _ALPHA
  if dpi:
    values |= {282: dpi[0], 283: dpi[1], 296: 2}
  for tag, value in values.items():
    tags[tag] = value
  for tag, value, kind in ((_XMP, xmp, 1), (_ICC, icc, 7)):
    if value:
      tags.tagtype[tag] = kind
      tags[tag] = value
  out = io.BytesIO()
  tags.save(out)
  out.write(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes())
  return out.getvalue()
