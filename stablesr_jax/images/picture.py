"""A picture in memory: its pixels, and what belongs to them."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture, upright.

  Attributes:
    rgb: The pixels (H, W, 3), float32 in [0, 1], as encoded (sRGB or the space of `icc`, not linear light).
    alpha: The opacity (H, W), float32 in [0, 1], not premultiplied; None if the picture is opaque.
    icc: The RGB colour profile, None if there is none.
    exif: EXIF data as Pillow takes them, None if there are none.
    xmp: The XMP packet, None if there is none.
    dpi: The pixels an inch, along x and y; None if the file does not say.
    bit_depth: The number of bits of each channel in the file, 8 or 16 (more are counted as 16).
    notes: What a person should be told of the file, such as that it has more frames; a line each.
  """

  rgb: np.ndarray
  alpha: np.ndarray | None = None
  icc: bytes | None = None
  exif: bytes | None = None
  xmp: bytes | None = None
  dpi: tuple[float, float] | None = None
  bit_depth: int = 8
  notes: tuple[str, ...] = ()
