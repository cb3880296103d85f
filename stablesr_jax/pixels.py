"""Arithmetic on pixels: kinds of values, padding, resizing.

Resizing is by weighted sums of a fixed number of source pixels, so that the size may be drawn in a compiled program.
"""

import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image

from stablesr_jax.errors import UserError
from stablesr_jax.images.alpha import fill_transparent, resize_alpha
from stablesr_jax.images.conversion import from_pillow
from stablesr_jax.images.metadata import clean_icc

# The order is that of a drawn mode's number.
MODES = ("area", "bilinear", "bicubic")

Taps = tuple[Int[Array, "n l"], Float[Array, "n l"]]
Planes = Float[Array | np.ndarray, "*b h w"]
Size = int | Int[Array, ""]
# Which entries of an axis, by their numbers.
Entries = Int[Array, " l"]


def resize(planes: Planes, height: int, width: int, mode: str) -> Float[Array, "*b {height} {width}"]:
  """Resizes without antialiasing, half-pixel centres; "area" is the mean over each pixel's whole source pixels.

  Args:
    planes: Values, float32.
    mode: One of MODES.

  Returns:
    Values, float32; bicubic (a = -0.75) may leave the range of the input.

  Raises:
    ValueError: The mode is none of MODES.
  """
  if mode not in MODES:
    raise ValueError(f"resize mode {mode!r}: choose one of {', '.join(MODES)}")
  number = MODES.index(mode)
  rows, columns = (
    axis_taps(number, source, target, source / target, target, taps_for(source / target))
    for source, target in zip(planes.shape[-2:], (height, width), strict=True)
  )
  return apply_taps(planes, rows, columns)


def apply_taps(
  planes: Planes,
  rows: tuple[Int[Array, "n h2"], Float[Array, "n h2"]],
  columns: tuple[Int[Array, "m w2"], Float[Array, "m w2"]],
) -> Float[Array, "*b h2 w2"]:
  """Resizes planes, given the taps of both axes."""
  # Rows are gathered whole. Gathering columns would leave planes transposed in memory, which slows all that follows.
  index, weight = rows
  weight = weight.reshape(len(weight), *[1] * (planes.ndim - 2), -1, 1)
  gathered = sum(jnp.take(planes, i, axis=-2, mode="clip") * w for i, w in zip(index, weight, strict=True))
  source = jnp.arange(planes.shape[-1])[:, None]
  matrix = sum(jnp.where(source == i[None], w[None], 0.0) for i, w in zip(*columns, strict=True))
  return jnp.matmul(gathered, matrix, precision=jax.lax.Precision.HIGHEST)


def taps_for(step: float) -> int:
  """How many source entries a target entry may need where these are `step` source entries apart."""
  return max(4, math.ceil(step) + 1)


def axis_taps(
  mode: Size, source: Size, target: Size, step: float | Float[Array, ""], length: int | Entries, count: int
) -> Taps:
  """Which source entries make each target entry of an axis, and their weights.

  Args:
    mode: The index into MODES; may be traced, as may `source`, `target` and `step`.
    source: The number of entries of the axis before.
    target: The number of entries after.
    step: How many source entries there are for each target entry: 1 / factor where a factor was given, otherwise
      source / target. "area" goes by the sizes alone.
    length: The length of the result, at least `target`; or the numbers of those entries that are made.
    count: The number of taps, at least `taps_for(step)`.

  Returns:
    The source entries, int32, and their weights, float32: n taps for each target entry; zero from `target` on.
  """
  out = _entries(length)[None, :]
  tap = jnp.arange(count)[:, None]
  centre = (out + 0.5) * step - 0.5

  def area():
    first, end = out * source // target, -(-(out + 1) * source // target)
    return first, jnp.where(first + tap < end, 1.0 / (end - first), 0.0)

  def bilinear():
    position = jnp.maximum(centre, 0.0)
    first = jnp.floor(position)
    return first.astype(jnp.int32), jnp.maximum(1 - jnp.abs(position - first - tap), 0.0)

  def bicubic():
    first = jnp.floor(centre) - 1
    return first.astype(jnp.int32), _cubic(jnp.abs(centre - first - tap))

  first, weight = jax.lax.switch(mode, (area, bilinear, bicubic))
  return jnp.clip(first + tap, 0, source - 1), jnp.where(out < target, weight, 0.0)


def bicubic_taps(source: Size, target: Size, length: int | Entries) -> Taps:
  """The taps of an axis that gets longer, as `axis_taps` gives them; both sizes may be traced."""
  return axis_taps(MODES.index("bicubic"), source, target, source / target, length, taps_for(1))


def antialiased(
  entries: int, source: Size, target: Size, length: int | Entries, first: Size = 0
) -> Float[Array, "_ {entries}"]:
  """The matrix that makes an axis shorter: a cubic (a = -0.5) as wide as a target entry, half-pixel centres.

  Args:
    entries: The length of the axis before, or of the part of it that is at hand.
    source: How many entries of it count; may be traced, as may `target` and `first`.
    length: The length after, of which the first `target` are made; or the numbers of those entries that are.
    first: The number of the first entry at hand.
  """
  step = source / target
  centre, index = (_entries(length)[:, None] + 0.5) * step - 0.5, first + jnp.arange(entries)[None]
  weight = jnp.where(index < source, _cubic(jnp.abs(centre - index) / jnp.maximum(step, 1), a=-0.5), 0)
  return weight / weight.sum(axis=1, keepdims=True)


def _entries(length: int | Entries) -> Entries:
  return jnp.arange(length) if isinstance(length, int) else length


def _cubic(distance: jax.Array, a: float = -0.75) -> jax.Array:
  near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
  far = ((distance - 5) * distance + 8) * (a * distance) - 4 * a
  return jnp.where(distance <= 1, near, jnp.where(distance < 2, far, 0.0))


@functools.partial(jax.jit, static_argnames="size")
def enlarge(low: Float[Array, "*b h w 3"], size: tuple[int, ...]) -> Float[Array, "*b {size[0]} {size[1]} 3"]:
  """Brings images in [0, 1] to a size (height, width), bicubic."""
  planes = resize(jnp.moveaxis(low, -1, -3), size[0], size[1], "bicubic")
  return jnp.clip(jnp.moveaxis(planes, -3, -1), 0, 1)


def to_unit(image: Float[Array, "*s"]) -> Float[Array, "*s"]:
  """[-1, 1] -> [0, 1], clipped."""
  return jnp.clip((image + 1) / 2, 0, 1)


Pixels = TypeVar("Pixels", np.ndarray, jax.Array)
Picture = TypeVar("Picture", np.ndarray, Image.Image)


def to_uint8(image: Pixels) -> Pixels:
  """[0, 1] -> uint8, clipped and rounded. NumPy's or JAX's arrays, of any shape."""
  return (image.clip(0, 1) * 255).round().astype(np.uint8)


def to_float(image: np.ndarray | Image.Image) -> np.ndarray:
  """A PIL image (made RGB), uint8, or floats in [0, 1] -> float32 in [0, 1].

  A PIL image of 16 bits (I;16) keeps them, CMYK is turned to sRGB, and what is fully transparent gets the colours
  beside it.

  Raises:
    UserError: The array has another dtype, or floats outside [0, 1]; the PIL image is of a mode that does not say what
      its values mean (I, LAB).
  """
  if isinstance(image, Image.Image):
    pixels = from_pillow(image)
    return fill_transparent(pixels.rgb, pixels.alpha)
  image = np.asarray(image)
  if image.dtype == np.uint8:
    return image.astype(np.float32) / 255
  if not np.issubdtype(image.dtype, np.floating):
    raise UserError(f"image of {image.dtype}: expected uint8, or floats in [0, 1]")
  if not (np.isfinite(image).all() and image.size and 0 <= image.min() and image.max() <= 1):
    raise UserError("image of floats: expected values in [0, 1]")
  return image.astype(np.float32)


def like(pixels: np.ndarray, example: Picture) -> Picture:
  """float32 (H, W, 3) in [0, 1] -> the kind that `example` is: PIL, uint8, or float32 as it is.

  A PIL image is RGB, or with the enlarged alpha of `example` RGBA, of 8 bits, and has its colour profile.
  """
  if isinstance(example, Image.Image):
    before, result = from_pillow(example), Image.fromarray(to_uint8(pixels))
    if before.alpha is not None:
      result.putalpha(Image.fromarray(to_uint8(resize_alpha(before.alpha, *pixels.shape[:2]))))
    if (icc := clean_icc(example.info.get("icc_profile"))) and not before.converted:
      result.info["icc_profile"] = icc
    return result
  return to_uint8(pixels) if example.dtype == np.uint8 else pixels
