"""libvips, which reads and writes what Pillow would reduce to 8 bits or read otherwise than it is stored."""

import logging
from typing import Any

import numpy as np

from stablesr_jax.errors import UserError, first_line

_TYPES = {
  "uchar": np.uint8,
  "ushort": np.uint16,
  "uint": np.uint32,
  "float": np.float32,
}


def load(data: bytes, loader: str) -> np.ndarray:
  """Decodes an image file.

  Args:
    loader: "png" or "tiff".

  Returns:
    (H, W, C), unsigned integers or floats as stored.

  Raises:
    UserError: It is damaged, or of a kind that libvips does not read.
  """
  pyvips = _pyvips()
  try:
    # "error", as at any lower level pieces that cannot be decoded are left black.
    image = getattr(pyvips.Image, f"{loader}load_buffer")(data, fail_on="error")
    if image.format not in _TYPES:
      raise UserError(f"samples of type {image.format} are not supported")
    values = np.frombuffer(image.write_to_memory(), _TYPES[image.format])
  except pyvips.Error as error:
    raise UserError(_reason(error)) from error
  return values.reshape(image.height, image.width, image.bands)


def jpeg_complaint(data: bytes) -> str | None:
  """What the decoder finds wrong with a JPEG; it decodes most damaged ones all the same."""
  pyvips = _pyvips()
  try:
    pyvips.Image.jpegload_buffer(data, fail_on="warning").write_to_memory()
    return None
  except pyvips.Error as error:
    return _reason(error)


def save_png(pixels: np.ndarray) -> bytes:
  """A PNG of (H, W, 3 or 4) uint16, without metadata."""
  pyvips = _pyvips()
  height, width, bands = pixels.shape
  image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels), width, height, bands, "ushort")
  try:
    return image.copy(interpretation="rgb16").pngsave_buffer(bitdepth=16, keep="none", filter="all")
  except pyvips.Error as error:
    raise UserError(_reason(error)) from error


def _pyvips() -> Any:
  try:
    import pyvips  # Late: most pictures need none of it.
  except (ImportError, OSError) as error:
    raise UserError('pictures of this kind need libvips: pip install "pyvips[binary]"') from error
  logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # what is wrong is raised as well
  pyvips.cache_set_max(0)  # it would keep the files of the last operations in memory
  return pyvips


def _reason(error: Any) -> str:
  """What libvips says, without the parts that say where."""
  return first_line(ValueError(error.detail or error.message)).partition(": ")[2] or str(error.message)
