"""Writes pictures, with what belongs to them."""

import contextlib
import io
import json
import pathlib
import string
import warnings
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from stablesr_jax.errors import UserError, first_line
from stablesr_jax.files import atomic_write
from stablesr_jax.images import png, tiff, vips
from stablesr_jax.images.alpha import over_white
from stablesr_jax.images.kinds import WRITABLE_SUFFIXES, format_of
from stablesr_jax.images.metadata import exif_to_write
from stablesr_jax.images.picture import Picture
from stablesr_jax.settings import require, settings

_QUALITY = {"AVIF": 90, "JPEG": 95, "WEBP": 95}
_FULL_COLOUR: dict[str, dict[str, Any]] = {"AVIF": {"subsampling": "4:4:4"}, "JPEG": {"subsampling": 0}}  # 0 is 4:4:4
_DEEP = ("PNG", "TIFF")
_LONGEST_SIDE = {"JPEG": 65535, "WEBP": 16383, "AVIF": 65536, "PNG": 2**31 - 1}
_MOST_JPEG_SEGMENT = 65533  # bytes
_MOST_JPEG_XMP = 65502
_ROWS = 64  # that are rounded at once
_NAME_FIELDS = ("stem", "name", "scale", "model")


@settings
class Output:
  """How results are written.

  Attributes:
    format: The format of a folder's results, and of a file's whose output is a folder; None is "png".
    bits: The number of bits of each channel: 8, 16 (PNG and TIFF), or "auto": 16 if the input has them and the format
      can.
    quality: That of JPEG, WebP and AVIF, 1 to 100; None is 95, of AVIF 90.
    metadata: Whether EXIF, XMP and density are kept. The colour profile is always: colours mean nothing without it.
    record: Whether the settings used are written into the result, as JSON: in a PNG as the text "stablesr_jax", else in
      EXIF. Without `metadata` they are not.
    name: The pattern of a result's name without its suffix, of {stem} (the input's name without suffix), {name} (with
      it), {scale} (of another size, it: 1920x1080, 12mp) and {model}.
  """

  format: Literal["png", "jpg", "webp", "tif", "avif"] | None = None
  bits: Literal["auto", 8, 16] = "auto"
  quality: Annotated[int, Field(ge=1, le=100)] | None = None
  metadata: bool = True
  record: bool = True
  name: str = "{stem}"

  def __post_init__(self):
    try:
      parts = list(string.Formatter().parse(self.name))
    except ValueError as error:
      raise UserError(f"name {self.name!r}: {error}") from error
    fields = [field for _, field, _, _ in parts if field is not None]
    plain = all(not spec and not conversion for _, field, spec, conversion in parts if field is not None)
    known = "must be made of {stem}, {name}, {scale}, {model} and text"
    require(plain and set(fields) <= set(_NAME_FIELDS), "name", self.name, known)
    require(bool({"stem", "name"} & set(fields)), "name", self.name, "must have {stem} or {name} in it")
    require(not {"/", "\\", "\0"} & set(self.name), "name", self.name, "must not lead to another folder")
    if self.format is not None:
      self.require_suits(pathlib.Path(f"results.{self.format}"))

  def file_name(self, stem: str, name: str, scale: str, model: str) -> str:
    """The name of a result."""
    model = model.replace("/", "-").replace("\\", "-")
    return f"{self.name.format(stem=stem, name=name, scale=scale, model=model)}.{self.format or 'png'}"

  def require_suits(self, path: pathlib.Path) -> None:
    """Raises UserError if the format of the path's suffix does not have what is asked for."""
    kind = format_of(path.suffix)
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
      suffix = path.suffix or "a file without suffix"
      raise UserError(f"{path}: cannot write {suffix} (use {', '.join(WRITABLE_SUFFIXES)})")
    if self.format is not None and format_of(f".{self.format}") != kind:
      raise UserError(f"format {self.format}: the output is called {path.name}")
    if self.bits == 16 and kind not in _DEEP:
      raise UserError(f"bits 16: {kind} has 8; use .png or .tif")
    if self.quality is not None and kind not in _QUALITY:
      raise UserError(f"quality {self.quality}: {kind} loses nothing; it is for .jpg, .webp and .avif")


Place = Callable[[pathlib.Path], contextlib.AbstractContextManager[pathlib.Path]]


def write_image(
  path: str | pathlib.Path,
  picture: Picture,
  output: Output = Output(),
  record: dict[str, Any] | None = None,
  place: Place = atomic_write,
) -> None:
  """Writes a picture in the format of the path's suffix: PNG, JPEG (95, 4:4:4), WebP, TIFF or AVIF.

  Values are clipped to [0, 1] and rounded to the number of bits. Colour profile, EXIF, XMP and density are written too,
  with the picture's new size in EXIF; alpha is laid over white where the format has none (JPEG). The file appears under
  its name when it is complete, in place of an older one. Its folder must exist.

  Args:
    output: How; its `format` and `name` do not matter here.
    record: The settings used, for `output.record`.
    place: As `atomic_write`: a context that gives the path to write to, and puts what is there in place.

  Raises:
    UserError: the folder does not exist.
    UserError: the suffix is not one of `WRITABLE_SUFFIXES`, the picture is too large for the format, has shapes that
      do not fit, or values that are not finite; the format does not have what `output` asks for; or the file cannot be
      written.
  """
  path = pathlib.Path(path)
  output.require_suits(path)
  if not path.parent.is_dir():
    raise UserError(f"{path}: no such folder: {path.parent}")
  if path.is_dir():
    raise UserError(f"{path}: is a folder")
  kind = format_of(path.suffix)
  deep = kind in _DEEP and (output.bits == 16 or (output.bits == "auto" and picture.bit_depth > 8))
  try:
    pixels = _quantised(picture, with_alpha=kind != "JPEG", bits=16 if deep else 8)
    require_holds(path, *pixels.shape[:2])
  except UserError as error:
    raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
  try:
    data = _encode(path, kind, pixels, picture, output, record)
    with place(path) as temporary, open(temporary, "wb") as f:
      f.write(data)
  except (OSError, ValueError, RuntimeError) as error:
    raise UserError(f"{path}: cannot be written ({first_line(error)})") from error


def _encode(
  path: pathlib.Path, kind: str, pixels: np.ndarray, picture: Picture, output: Output, record: dict[str, Any] | None
) -> bytes:
  """The file."""
  height, width = pixels.shape[:2]
  record = record if output.record and output.metadata else None
  exif, xmp, dpi = (picture.exif, picture.xmp, picture.dpi) if output.metadata else (None, None, None)
  # Formats without a place of their own for density have it in EXIF.
  exif = exif_to_write(
    exif, width, height, dpi if kind in ("AVIF", "WEBP") else None, record if kind != "PNG" else None
  )
  if kind == "TIFF":
    return tiff.encode(pixels, icc=picture.icc, exif=exif, xmp=xmp, dpi=dpi)
  out = io.BytesIO()
  if kind == "PNG":
    if pixels.dtype == np.uint16:
      plain = vips.save_png(pixels)
    else:
      Image.fromarray(pixels).save(out, "PNG")
      plain = out.getvalue()
    text = {} if record is None else {"stablesr_jax": json.dumps(record, separators=(",", ":"))}
    return png.with_metadata(plain, icc=picture.icc, exif=exif, xmp=xmp, dpi=dpi, text=text)
  options: dict[str, Any] = {"quality": output.quality or _QUALITY[kind], **_FULL_COLOUR.get(kind, {})}
  for name, value, most in (("exif", exif, _MOST_JPEG_SEGMENT), ("xmp", xmp, _MOST_JPEG_XMP)):
    if value and kind == "JPEG" and len(value) > most:
      warnings.warn(f"{path}: {name.upper()} of {len(value)} bytes does not fit a JPEG and is left out", stacklevel=3)
    elif value:
      options[name] = value
  if picture.icc:
    options["icc_profile"] = picture.icc
  if dpi and kind == "JPEG":
    options["dpi"] = tuple(min(round(d), 65535) for d in dpi)
  Image.fromarray(pixels).save(out, kind, **options)
  return out.getvalue()


def require_holds(path: pathlib.Path, height: int, width: int) -> None:
  """Raises UserError if the format of the path's suffix cannot hold a picture of this size."""
  kind = format_of(path.suffix)
  limit = _LONGEST_SIDE.get(kind)
  if limit and max(height, width) > limit:
    raise UserError(f"{path}: {kind} holds at most {limit} pixels a side; use .png or .tif")
  if kind == "TIFF" and 8 * height * width > tiff.MOST_BYTES:  # four channels of 16 bits
    raise UserError(f"{path}: TIFF holds at most 4 GB; use .png")


def _quantised(picture: Picture, with_alpha: bool, bits: Literal[8, 16]) -> np.ndarray:
  """(H, W, 3 or 4), uint8 or uint16."""
  rgb, alpha = picture.rgb, picture.alpha
  if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
    raise UserError(f"rgb of shape {rgb.shape}: expected (H, W, 3)")
  if alpha is not None and alpha.shape != rgb.shape[:2]:
    raise UserError(f"alpha of shape {alpha.shape} does not fit rgb of shape {rgb.shape}")
  dtype = np.uint16 if bits == 16 else np.uint8
  with_alpha = with_alpha and alpha is not None
  pixels = np.empty((*rgb.shape[:2], 4 if with_alpha else 3), dtype)
  for top in range(0, len(rgb), _ROWS):  # a large picture is held once more in few bits, not in floats
    rows = slice(top, top + _ROWS)
    band, opacity = rgb[rows], None if alpha is None else alpha[rows]
    if not (np.isfinite(band).all() and (opacity is None or np.isfinite(opacity).all())):
      raise UserError("the picture has values that are not finite (NaN or infinity)")
    if with_alpha and opacity is not None:
      band = np.concatenate([band, opacity[..., None]], axis=2)
    else:
      band = over_white(band, opacity)
    pixels[rows] = (band.clip(0, 1) * np.iinfo(dtype).max).round()
  return pixels
