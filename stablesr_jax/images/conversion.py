"""Pixels of every kind, as decoders give them, in the one kind that is worked with."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from stablesr_jax.errors import UserError


class Pixels(NamedTuple):
  """What `Picture` has of pixels.

  Attributes:
    rgb: (H, W, 3) float32 in [0, 1].
    alpha: (H, W) float32 in [0, 1], not premultiplied; None if opaque.
    bit_depth: 8 or 16.
    converted: Whether the colours were converted to sRGB, so that the file's profile no longer describes them.
  """

  rgb: np.ndarray
  alpha: np.ndarray | None
  bit_depth: int = 8
  converted: bool = False


def from_array(values: np.ndarray) -> Pixels:
  """Converts (H, W) or (H, W, 1 to 4): grey, grey and alpha, RGB, RGBA; unsigned integers, or floats in [0, 1].

  Raises:
    UserError: There are values outside 0 to 1, or that are not finite.
  """
  values = values.reshape(*values.shape[:2], -1)
  if values.dtype.kind == "u":
    unit = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    unit /= np.iinfo(values.dtype).max
  else:
    unit = values
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
      raise UserError("has values outside 0 to 1")
  unit = unit.astype(np.float32, copy=False)
  colours = 1 if unit.shape[2] < 3 else 3
  rgb = np.repeat(unit[..., :1], 3, axis=2) if colours == 1 else np.ascontiguousarray(unit[..., :3])
  alpha = np.ascontiguousarray(unit[..., colours]) if unit.shape[2] > colours else None
  return Pixels(rgb, alpha, 8 if values.dtype == np.uint8 else 16)


def from_pillow(image: Image.Image) -> Pixels:
  """Converts a Pillow image; a palette becomes its colours, CMYK is turned to sRGB through its profile.

  Raises:
    UserError: Its mode does not say what its values mean (I, LAB), or it has values outside 0 to 1 (F).
  """
  if image.mode.startswith("I;16"):
    values = np.asarray(image)
    pixels = from_array(values.astype(np.uint16))
    if isinstance(transparent := image.info.get("transparency"), int):
      return pixels._replace(alpha=(values != transparent).astype(np.float32))
    return pixels
  if image.mode == "F":
    return from_array(np.asarray(image))
  if image.mode == "CMYK":
    return from_array(np.asarray(_cmyk_to_srgb(image)))._replace(converted=True)
  if image.mode == "La":  # premultiplied; Pillow turns it to LA only
    image = image.convert("LA")
  if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "HSV"):
    raise UserError(f"image of mode {image.mode}: convert it to RGB, L, or for 16 bits I;16, first")
  if image.mode == "RGBa":
    image = image.convert("RGBA")
  return from_array(np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB")))


def cmyk(values: np.ndarray, icc: bytes | None) -> Pixels:
  """Converts (H, W, 4), or (H, W, 5) with alpha, of 8 or 16 bits; colours have 8 bits in the result."""
  if values.dtype == np.uint16:
    values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
  image = Image.frombuffer("CMYK", values.shape[1::-1], np.ascontiguousarray(values[..., :4]).tobytes())
  image.info["icc_profile"] = icc
  pixels = from_pillow(image)
  return pixels._replace(alpha=from_array(values[..., 4]).rgb[..., 0]) if values.shape[2] > 4 else pixels


def _cmyk_to_srgb(image: Image.Image) -> Image.Image:
  if icc := image.info.get("icc_profile"):
    try:
      converted = ImageCms.profileToProfile(
        image, ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), outputMode="RGB"
      )
      if converted is not None:
        return converted
    except (ImageCms.PyCMSError, OSError):
      pass  # A damaged profile: do as without one.
  return image.convert("RGB")
