"""How large results become."""

import dataclasses
import math
from typing import Annotated

from pydantic import Field

from stablesr_jax.errors import UserError
from stablesr_jax.settings import Positive, require, settings

# Beyond 48 GiB as float32, of which several copies are needed; the first keeps what is computed from sides finite.
_LONGEST_SIDE, _MOST_PIXELS = 2**31 - 1, 2**32
# What of the proportions is lost by rounding to whole pixels is no matter.
_UNEQUAL = 1.02

Side = Annotated[int, Field(ge=1, le=_LONGEST_SIDE)]


@settings
class OutputSize:
  """The size of results: exactly one of these, or `width` and `height` both. The proportions are kept but for those.

  Attributes:
    scale: The factor of both sides; below 1 they become shorter.
    width: The width in pixels.
    height: The height in pixels.
    longest_side: The longer of both in pixels.
    shortest_side: The shorter of both in pixels.
    megapixels: The area in millions of pixels, as nearly as whole sides can have it.
  """

  scale: Positive | None = None
  width: Side | None = None
  height: Side | None = None
  longest_side: Side | None = None
  shortest_side: Side | None = None
  megapixels: Positive | None = None

  def __post_init__(self):
    given = [name.replace("_", "-") for name in self.given]
    require(bool(given), "scale", None, "give it, or another size")
    alone = len(given) == 1 or given == ["width", "height"]
    require(alone, given[0], next(iter(self.given.values())), f"excludes {given[-1]}; give one")

  @property
  def given(self) -> dict[str, float]:
    """What is given, by name."""
    return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

  def __str__(self) -> str:
    """A short name: "4" of a scale, else "1920x1080", "1920x", "x1080", "longest2048", "shortest512" or "12mp"."""
    if self.scale is not None:
      return f"{self.scale:g}"
    if self.megapixels is not None:
      return f"{self.megapixels:g}mp"
    if self.longest_side or self.shortest_side:
      return f"longest{self.longest_side}" if self.longest_side else f"shortest{self.shortest_side}"
    return f"{self.width or ''}x{self.height or ''}"

  def of(self, size: tuple[int, int]) -> tuple[int, int]:
    """The height and width of the result of a picture of `size` (height, width), both at least 1.

    Raises:
      UserError: They are beyond all reason.
    """
    height, width = size
    rows, columns = (side * factor for side, factor in zip(size, self._factors(size), strict=True))
    if rows * columns > _MOST_PIXELS or max(rows, columns) > _LONGEST_SIDE:  # in floats: infinite, but no error
      name, value = next(iter(self.given.items()))
      raise UserError(
        f"{name.replace('_', '-')} {value}: the result of {width}x{height} pixels would be too large (at most"
        f" {_MOST_PIXELS / 1e9:.1f} gigapixels, and sides of {_LONGEST_SIDE})"
      )
    return max(1, round(rows)), max(1, round(columns))

  def note(self, size: tuple[int, int]) -> str | None:
    """What to tell of a picture of `size` (height, width) whose proportions change."""
    rows, columns = self._factors(size)
    if max(rows / columns, columns / rows) < _UNEQUAL:
      return None
    return f"its proportions change: the width becomes {columns:.3g} times as large, the height {rows:.3g} times"

  def _factors(self, size: tuple[int, int]) -> tuple[float, float]:
    """The factors of a picture's height and width."""
    height, width = size
    if self.width is not None and self.height is not None:
      return self.height / height, self.width / width
    if self.scale is not None:
      factor = self.scale
    elif self.megapixels is not None:
      factor = math.sqrt(self.megapixels * 1e6 / (height * width))
    elif self.width is not None or self.height is not None:
      factor = self.width / width if self.width is not None else (self.height or 0) / height
    else:
      factor = self.longest_side / max(size) if self.longest_side else (self.shortest_side or 0) / min(size)
    return factor, factor


def output_size(scale: "float | OutputSize") -> OutputSize:
  """The size of results that are `scale` times as large, or what is one already.

  Raises:
    UserError: The scale is no positive number.
  """
  return scale if isinstance(scale, OutputSize) else OutputSize(scale=scale)
