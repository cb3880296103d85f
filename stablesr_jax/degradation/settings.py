"""What is drawn for a degraded image: probabilities and ranges of the two stages, and the presets."""

import dataclasses
from typing import Annotated

from pydantic import AfterValidator, Field

from stablesr_jax.errors import UserError
from stablesr_jax.settings import Count, Fraction, NotNegative, require, settings, within

Range = tuple[float, float]


def _sums_to_one(probabilities: tuple[float, ...]) -> tuple[float, ...]:
  if abs(sum(probabilities) - 1) >= 1e-6:
    raise UserError("must sum to 1")
  return probabilities


def _holds_one(pair: Range) -> Range:
  if not pair[0] <= 1 <= pair[1]:
    raise UserError("must hold 1")
  return pair


@settings
class SharpenSettings:
  """Unsharp masking of the high-resolution image.

  Attributes:
    weight: How much of the detail is added.
    radius: The side of the Gaussian window in pixels; an even number is widened by one.
    threshold: The strength (of 255) below which detail is left alone.
    target: Whether the training target is the sharpened image, as in the paper, or the image as it was.
  """

  weight: NotNegative = 0.5
  radius: Annotated[int, Field(ge=3)] = 51
  threshold: Annotated[float, Field(ge=0, le=255)] = 10.0
  target: bool = True


@settings
class StageSettings:
  """One stage: blur, resize, noise, JPEG (defaults: the first stage of the published 512 model).

  Attributes:
    blur_probability: The probability of filtering at all.
    kernel_sizes: The smallest and the largest side of the kernel, odd; the odd numbers between are equally likely.
    kernel_probabilities: The probabilities of isotropic and anisotropic Gaussians, the same two generalized, the same
      two plateaus.
    sigma: The standard deviation along either axis, in pixels.
    generalized_beta: The exponent of generalized Gaussians; below and above 1 are equally likely.
    plateau_beta: The exponent of plateaus, drawn likewise.
    sinc_probability: The probability of a sinc filter in place of the six kernels.
    resize_probabilities: The probabilities of enlarging, shrinking, keeping the size.
    resize_range: The least and the greatest factor; of the image in the first stage, of the low-resolution size in the
      second.
    gaussian_probability: The probability of Gaussian noise; otherwise it is Poisson noise.
    gaussian_sigma: The standard deviation of Gaussian noise, of 255.
    poisson_scale: The factor of the Poisson noise.
    gray_probability: The probability of the same noise in all channels.
    jpeg_quality: The quality of JPEG compression, 1 to 100.
  """

  blur_probability: Fraction = 1.0
  kernel_sizes: Annotated[tuple[int, int], within(3)] = (7, 21)
  kernel_probabilities: Annotated[
    tuple[Fraction, Fraction, Fraction, Fraction, Fraction, Fraction], AfterValidator(_sums_to_one)
  ] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
  sigma: Annotated[Range, within(0.05)] = (0.2, 1.5)
  generalized_beta: Annotated[Range, within(0.1), AfterValidator(_holds_one)] = (0.5, 2.0)
  plateau_beta: Annotated[Range, within(0.1), AfterValidator(_holds_one)] = (1.0, 1.5)
  sinc_probability: Fraction = 0.1
  resize_probabilities: Annotated[tuple[Fraction, Fraction, Fraction], AfterValidator(_sums_to_one)] = (0.2, 0.7, 0.1)
  resize_range: Annotated[Range, within(0.05, 4), AfterValidator(_holds_one)] = (0.3, 1.5)
  gaussian_probability: Fraction = 0.5
  gaussian_sigma: Annotated[Range, within(0, 255)] = (1.0, 15.0)
  poisson_scale: Annotated[Range, within(0)] = (0.05, 2.0)
  gray_probability: Fraction = 0.4
  jpeg_quality: Annotated[Range, within(1, 100)] = (60.0, 95.0)

  def __post_init__(self):
    odd = all(size % 2 for size in self.kernel_sizes)
    require(odd, "kernel_sizes", self.kernel_sizes, "must be odd")


SECOND_STAGE = StageSettings(
  blur_probability=0.5,
  sigma=(0.2, 1.0),
  resize_probabilities=(0.3, 0.4, 0.3),
  resize_range=(0.6, 1.2),
  gaussian_sigma=(1.0, 12.0),
  poisson_scale=(0.05, 1.0),
  jpeg_quality=(60.0, 100.0),
)


@settings
class DegradationSettings:
  """The whole degradation (defaults: the published 512 model).

  Attributes:
    scale: The sides of the high-resolution image over those of the low-resolution one.
    sharpen: The unsharp masking of the image before it is degraded; None is off.
    first: The first stage.
    second: The second stage; without one, the first's result is only brought to its size.
    final_sinc_probability: The probability of a sinc filter at the end of the second stage.
    clean_probability: The probability of an image that is only shrunk.
  """

  scale: Count = 4
  sharpen: SharpenSettings | None = SharpenSettings()
  first: StageSettings = StageSettings()
  second: StageSettings | None = SECOND_STAGE
  final_sinc_probability: Fraction = 0.8
  clean_probability: Fraction = 0.01


_512 = DegradationSettings()

PRESETS: dict[str, DegradationSettings] = {
  # The paper's Real-ESRGAN settings, as the published 512 model was trained.
  "stablesr_512": _512,
  # As the published 768 model was trained: no sharpening, JPEG to 95 at the end, always degraded.
  "stablesr_768v": dataclasses.replace(
    _512,
    sharpen=None,
    second=dataclasses.replace(SECOND_STAGE, jpeg_quality=(60.0, 95.0)),
    clean_probability=0.0,
  ),
  # Faces: one heavy stage in the manner of face restoration (wide Gaussian blurs, strong shrinking, Gaussian
  # colour noise, JPEG down to 30, no sharpening). Published face training shrinks by up to 32; factors here end at
  # 1/16, so that a 512 face keeps two JPEG blocks a side.
  "face": DegradationSettings(
    sharpen=None,
    first=StageSettings(
      kernel_sizes=(41, 41),
      kernel_probabilities=(0.5, 0.5, 0.0, 0.0, 0.0, 0.0),
      sigma=(0.1, 15.0),
      sinc_probability=0.0,
      resize_probabilities=(0.0, 1.0, 0.0),
      resize_range=(0.0625, 1.0),
      gaussian_probability=1.0,
      gaussian_sigma=(0.0, 20.0),
      gray_probability=0.01,
      jpeg_quality=(30.0, 100.0),
    ),
    second=None,
    clean_probability=0.0,
  ),
  # Light: pictures of good cameras, scaled and saved once or twice with care. About a third of the published noise
  # and blur, no strong shrinking in between, JPEG from 80, and one image in twenty only shrunk.
  "light": DegradationSettings(
    first=StageSettings(
      blur_probability=0.8,
      sigma=(0.2, 0.8),
      resize_probabilities=(0.1, 0.4, 0.5),
      resize_range=(0.6, 1.2),
      gaussian_sigma=(0.0, 5.0),
      poisson_scale=(0.0, 0.5),
      jpeg_quality=(80.0, 98.0),
    ),
    second=StageSettings(
      blur_probability=0.2,
      sigma=(0.2, 0.5),
      resize_probabilities=(0.1, 0.2, 0.7),
      resize_range=(0.8, 1.2),
      gaussian_sigma=(0.0, 4.0),
      poisson_scale=(0.0, 0.3),
      jpeg_quality=(80.0, 100.0),
    ),
    final_sinc_probability=0.4,
    clean_probability=0.05,
  ),
}
