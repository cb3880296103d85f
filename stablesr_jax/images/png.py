"""The chunks of PNG files."""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image

from stablesr_jax.errors import UserError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What the pixels need. Everything else says something about them.
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_MOST_METADATA = 64 * 2**20  # bytes of one chunk, unpacked
_XMP = b"XML:com.adobe.xmp"
_INCH = 0.0254  # metres
_CHANNELS = {2: 3, 4: 2, 6: 4}
_AT_A_TIME = 2**20  # bytes
# Interlaced pictures are stored in seven: the first pixel, x and y, and the steps.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Contents(NamedTuple):
  """What a PNG file has.

  Attributes:
    pixels: The same picture as a file without anything else.
    width: Its width.
    height: Its height.
    depth: The bits of a sample.
    keyed: Whether it is grey or RGB with one transparent colour.
    info: "icc_profile", "exif", "xmp", "dpi", as Pillow names them; "gamma" and "frames".
  """

  pixels: bytes
  width: int
  height: int
  depth: int
  keyed: bool
  info: dict[str, Any]


def parse(data: bytes) -> Contents:
  """Divides a file into its pixels and the rest. Damaged metadata are left out.

  Raises:
    UserError: It is cut short, or damaged in what its pixels need.
  """
  kept, info, keyed, header, of_animation = [_SIGNATURE], {}, False, b"", False
  packed = []
  for kind, body, whole, intact in _chunks(data):
    if kind == b"IHDR":
      header = body
    if kind == b"IDAT" and not packed and not of_animation and "frames" in info:
      info["frames"] += 1  # the picture for programs that show no animations
    of_animation |= kind == b"fcTL"
    if kind in _PIXELS:
      if not intact:
        raise UserError(f"is damaged (checksum of {kind.decode()})")
      kept.append(whole)
      keyed |= kind == b"tRNS"
      if kind == b"IDAT":
        packed.append(body)
    elif not kind[0] & 32:  # capital: nobody can show the picture without
      raise UserError(f"has a critical part of unknown kind ({kind.decode()})")
    elif intact:
      try:
        info |= _metadata(kind, body)
      except (ValueError, struct.error, zlib.error):
        pass
  if len(header) != 13:
    raise UserError("is damaged (header)")
  width, height, depth, colours = struct.unpack(">IIBB", header[:10])
  if Image.MAX_IMAGE_PIXELS is None or width * height <= 2 * Image.MAX_IMAGE_PIXELS:  # else it is refused unread
    _require_whole(packed, width, height, depth * _CHANNELS.get(colours, 1), interlaced=header[12] == 1)
  return Contents(b"".join(kept), width, height, depth, keyed and colours in (0, 2), info)


def _require_whole(packed: list[bytes], width: int, height: int, bits: int, interlaced: bool) -> None:
  """Refuses pixels whose checksum is wrong, or that are not as many as the size says: decoders stop when they have
  enough.

  Args:
    bits: Those of a pixel.
  """
  passes = _PASSES if interlaced else ((0, 0, 1, 1),)
  sides = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes]
  expected = sum(h * (1 + (w * bits + 7) // 8) for w, h in sides if w > 0 and h > 0)
  inflate, got = zlib.decompressobj(), 0
  try:
    for part in packed:
      while part and not inflate.eof and got <= expected:
        got += len(inflate.decompress(part, _AT_A_TIME))
        part = inflate.unconsumed_tail
    while not inflate.eof and got <= expected and (rest := inflate.decompress(b"", _AT_A_TIME)):
      got += len(rest)
  except zlib.error as error:
    raise UserError("is damaged (its compressed pixels)") from error
  if got != expected:
    raise UserError(f"is damaged ({'more' if got > expected else 'fewer'} pixels than its size says)")
  if not inflate.eof:
    raise UserError("is damaged (its compressed pixels have no end)")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
  """(kind, body, the whole chunk, whether its checksum is right) of each chunk, up to the end of the picture."""
  at, view = len(_SIGNATURE), memoryview(data)
  while True:
    if at + 12 > len(data):
      raise UserError("is cut short")
    length, kind = struct.unpack_from(">I4s", data, at)
    end = at + 12 + length
    if not kind.isalpha():
      raise UserError("is damaged (a part of no kind)")
    if end > len(data):
      raise UserError("is cut short")
    body = data[at + 8 : end - 4]
    yield kind, body, data[at:end], zlib.crc32(view[at + 4 : end - 4]) == struct.unpack_from(">I", data, end - 4)[0]
    at = end
    if kind == b"IEND":
      return


def _metadata(kind: bytes, body: bytes) -> dict[str, Any]:
  match kind:
    case b"iCCP":
      return {"icc_profile": _inflate(body.partition(b"\0")[2][1:])}
    case b"eXIf":
      return {"exif": b"Exif\0\0" + body.removeprefix(b"Exif\0\0")}
    case b"pHYs":
      x, y, unit = struct.unpack(">IIB", body)
      return {"dpi": (x * _INCH, y * _INCH)} if unit == 1 else {}
    case b"gAMA":
      return {"gamma": struct.unpack(">I", body)[0] / 100000}
    case b"acTL":
      return {"frames": struct.unpack(">I", body[:4])[0]}
    case b"iTXt" if body.startswith(_XMP + b"\0"):
      compressed, rest = body[len(_XMP) + 1], body[len(_XMP) + 3 :]
      text = rest.partition(b"\0")[2].partition(b"\0")[2]
      return {"xmp": _inflate(text) if compressed else text}
    case b"tEXt" | b"zTXt":  # where some programs put EXIF: in hexadecimal, behind a heading and its length
      keyword, _, text = body.partition(b"\0")
      if keyword in (b"Raw profile type exif", b"Raw profile type APP1"):
        text = _inflate(text[1:]) if kind == b"zTXt" else text
        raw = bytes.fromhex(text.decode("ascii").split("\n", 3)[3])
        return {"exif": b"Exif\0\0" + raw.removeprefix(b"Exif\0\0")}
  return {}


def _inflate(data: bytes) -> bytes:
  unpacked = zlib.decompressobj().decompress(data, _MOST_METADATA + 1)
  if len(unpacked) > _MOST_METADATA:
    raise ValueError("too much")
  return unpacked


def with_metadata(
  data: bytes,
  *,
  icc: bytes | None,
  exif: bytes | None,
  xmp: bytes | None,
  dpi: tuple[float, float] | None,
  text: dict[str, str],
) -> bytes:
  """Puts metadata into a PNG that has none, before its pixels."""
  added = []
  if icc:
    added.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
  if dpi:
    added.append(_chunk(b"pHYs", struct.pack(">IIB", *(max(1, round(d / _INCH)) for d in dpi), 1)))
  if exif:
    added.append(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
  if xmp:
    added.append(_chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + xmp))
  added += [_chunk(b"tEXt", key.encode() + b"\0" + value.encode("latin-1")) for key, value in text.items()]
  kept = [whole for kind, _, whole, _ in _chunks(data) if kind in _PIXELS]
  return b"".join([_SIGNATURE, kept[0], *added, *kept[1:]])


def _chunk(kind: bytes, body: bytes) -> bytes:
  return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
