"""Kinds of files: which are read and written, and what a file's first bytes say that it is."""

import importlib
import importlib.util
import re
from typing import NamedTuple

from PIL import Image, features

from stablesr_jax.errors import UserError

_SUFFIXES = {
  "AVIF": (".avif",),
  "BMP": (".bmp",),
  "GIF": (".gif",),
  "HEIF": (".heic", ".heif"),
  "ICO": (".ico",),
  "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
  "JPEG2000": (".j2k", ".jp2"),
  "JXL": (".jxl",),
  "PNG": (".apng", ".png"),
  "TIFF": (".tif", ".tiff"),
  "WEBP": (".webp",),
}
_FORMATS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
# Formats that Pillow reads with a package beside it: the module, and the package that has it.
PLUGINS = {"HEIF": ("pillow_heif", "pillow-heif"), "JXL": ("pillow_jxl", "pillow-jxl-plugin")}
_MISSING = {kind for kind, (module, _) in PLUGINS.items() if importlib.util.find_spec(module) is None}
if not features.check("avif"):
  _MISSING.add("AVIF")
if not features.check("jpg_2000"):
  _MISSING.add("JPEG2000")

IMAGE_SUFFIXES = tuple(sorted(suffix for suffix, kind in _FORMATS.items() if kind not in _MISSING))
"""Suffixes that `read_image` reads, in lower case."""
_WRITTEN = (".avif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
WRITABLE_SUFFIXES = tuple(suffix for suffix in _WRITTEN if suffix in IMAGE_SUFFIXES)
"""Suffixes that `write_image` writes, in lower case."""


def format_of(suffix: str) -> str:
  """The format that files with a suffix have, by Pillow's name; "" if it is none of a picture's."""
  return _FORMATS.get(suffix.lower(), "")


class Kind(NamedTuple):
  """What a file is.

  Attributes:
    name: For people.
    format: Pillow's name of the format; None if it is nothing that is read.
  """

  name: str
  format: str | None = None


def _isobmff(data: bytes) -> Kind:
  """A file of boxes: pictures and films differ in their brands."""
  size = int.from_bytes(data[:4], "big")
  brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(size, 256), 4))}
  if brands & {b"avif", b"avis"}:
    return Kind("AVIF", "AVIF")
  if data[8:12] == b"crx ":
    return Kind("a camera's raw file (CR3)")
  if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"mif1", b"msf1"}:
    return Kind("HEIC", "HEIF")
  return Kind("a video (MP4, QuickTime)")


_STARTS = (
  (b"\x89PNG\r\n\x1a\n", Kind("PNG", "PNG")),
  (b"\xff\xd8\xff", Kind("JPEG", "JPEG")),
  (b"GIF87a", Kind("GIF", "GIF")),
  (b"GIF89a", Kind("GIF", "GIF")),
  (b"II\x1a\0\0\0HEAPCCDR", Kind("a camera's raw file (CRW)")),
  (b"IIU\0", Kind("a camera's raw file (RW2)")),
  (b"IIRO", Kind("a camera's raw file (ORF)")),
  (b"FUJIFILMCCD-RAW", Kind("a camera's raw file (RAF)")),
  (b"II*\0", Kind("TIFF", "TIFF")),
  (b"MM\0*", Kind("TIFF", "TIFF")),
  (b"II+\0", Kind("TIFF", "TIFF")),
  (b"MM\0+", Kind("TIFF", "TIFF")),
  (b"BM", Kind("BMP", "BMP")),
  (b"\0\0\1\0", Kind("ICO", "ICO")),
  (b"\0\0\0\x0cjP  \r\n\x87\n", Kind("JPEG 2000", "JPEG2000")),
  (b"\xffO\xffQ", Kind("JPEG 2000", "JPEG2000")),
  (b"\0\0\0\x0cJXL \r\n\x87\n", Kind("JPEG XL", "JXL")),
  (b"\xff\x0a", Kind("JPEG XL", "JXL")),
  (b"%PDF", Kind("a PDF")),
  (b"%!PS", Kind("PostScript (EPS)")),
  (b"\xc5\xd0\xd3\xc6", Kind("PostScript (EPS)")),
  (b"version https://git-lfs", Kind("a Git LFS pointer (git lfs pull fetches the picture)")),
  (b"8BPS", Kind("a Photoshop file (PSD)")),
  (b"gimp xcf", Kind("a GIMP file (XCF)")),
  (b"v/1\x01", Kind("OpenEXR")),
  (b"#?RADIANCE", Kind("Radiance HDR")),
  (b"DDS ", Kind("a DDS texture")),
  (b"qoif", Kind("QOI")),
  (b"SIMPLE  =", Kind("FITS")),
  (b"\x0a\x05\x01", Kind("PCX")),
  (b"AT&TFORM", Kind("DjVu")),
  (b"\x1aE\xdf\xa3", Kind("a video (Matroska, WebM)")),
  (b"PK\x03\x04", Kind("a ZIP archive")),
  (b"Rar!", Kind("a RAR archive")),
  (b"7z\xbc\xaf", Kind("a 7z archive")),
  (b"\x1f\x8b", Kind("a gzip archive")),
  (b"\x7fELF", Kind("a program")),
  (b"MZ", Kind("a program")),
)
_MARKUP = (
  (re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg\b", re.S | re.I), Kind("SVG")),
  (re.compile(rb"(<!--.*?-->\s*)*<(!doctype html|html|head|body)\b", re.S | re.I), Kind("a web page (HTML)")),
  (re.compile(rb"<\?xml\b"), Kind("XML")),
  (re.compile(rb"[\[{]\s*[\"{\[]"), Kind("JSON")),
)
_PNM = re.compile(rb"P([1-7]\s|[fF]\n)")


def sniff(data: bytes) -> Kind | None:
  """What a file's first bytes say that it is; None if they say nothing."""
  if data[4:8] == b"ftyp":
    return _isobmff(data)
  if data[:4] == b"RIFF":
    return Kind("WebP", "WEBP") if data[8:12] == b"WEBP" else Kind("a sound or a video (RIFF)")
  for start, kind in _STARTS:
    if data.startswith(start):
      return kind
  text = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
  for pattern, kind in _MARKUP:
    if pattern.match(text):
      return kind
  if _PNM.match(data):
    return Kind("a portable anymap (PNM)")
  if data and not data[:4096].strip(b"\0"):
    return Kind("nothing but zeros, as a copy that failed leaves")
  return None


def require_readable(kind: Kind | None) -> str:
  """The format, by Pillow's name, of a file that is to be read; where it needs a package, that is loaded.

  Raises:
    UserError: It is no picture, of a kind that is not supported, or the package is missing.
  """
  if kind is None:
    raise UserError("not an image, or of a kind that is not supported")
  if kind.format is None:
    raise UserError(f"is {kind.name}, which is not read")
  if kind.format in PLUGINS:
    module, package = PLUGINS[kind.format]
    try:
      plugin = importlib.import_module(module)
    except ImportError as error:
      raise UserError(f"is {kind.name}; to read it: pip install {package}") from error
    if kind.format == "HEIF" and kind.format not in Image.OPEN:
      plugin.register_heif_opener()
  elif kind.format in _MISSING:
    raise UserError(f"is {kind.name}, which this Pillow was built without")
  return kind.format
