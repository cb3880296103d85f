"""What is drawn for a degraded image: probabilities and ranges of the two stages, and the presets."""

import dataclasses

from stablesr_jax.errors import UserError

Range = tuple[float, float]


def _check(settings, field: str, ok: bool, wanted: str):
  if not ok:
    raise UserError(f"{field} {getattr(settings, field)!r}: {wanted}")


def _check_probability(settings, field: str):
  _check(settings, field, 0 <= getattr(settings, field) <= 1, "must be 0 to 1")


def _check_distribution(settings, field: str, length: int):
  values = getattr(settings, field)
  ok = isinstance(values, tuple) and len(values) == length and min(values) >= 0 and abs(sum(values) - 1) < 1e-6
  _check(settings, field, ok, f"must be {length} probabilities that sum to 1")


def _check_range(settings, field: str, least: float, most: float) -> Range:
  values = getattr(settings, field)
  ok = isinstance(values, tuple) and len(values) == 2 and least <= values[0] <= values[1] <= most
  limits = f"at least {least}" if most == float("inf") else f"within {least} to {most}"
  _check(settings, field, ok, f"must be (low, high), {limits}")
  return values


@dataclasses.dataclass(frozen=True)
class SharpenSettings:
  """Unsharp masking of the high-resolution image.

  Attributes:
    weight: how much of the detail is added.
    radius: side of the Gaussian window in pixels; an even number is widened by one.
    threshold: detail below this (of 255) is left alone.
    target: whether the training target is the sharpened image, as in the paper, or the image as it was.
  """

  weight: float = 0.5
  radius: int = 51
  threshold: float = 10.0
  target: bool = True

  def __post_init__(self):
    _check(self, "weight", self.weight >= 0, "must not be negative")
    _check(self, "radius", self.radius >= 3, "must be at least 3 pixels")
    _check(self, "threshold", 0 <= self.threshold <= 255, "must be 0 to 255")


@dataclasses.dataclass(frozen=True)
class StageSettings:
  """One stage: blur, resize, noise, JPEG (defaults: the first stage of the published 512 model).

  Attributes:
    blur_probability: of filtering at all.
    kernel_sizes: smallest and largest side of the kernel, odd; the odd numbers between are equally likely.
    kernel_probabilities: of isotropic and anisotropic Gaussians, the same two generalized, the same two plateaus.
    sigma: standard deviation of either axis, in pixels.
    generalized_beta, plateau_beta: exponents; below and above 1 are equally likely.
    sinc_probability: of a sinc filter in place of the six kernels.
    resize_probabilities: of enlarging, shrinking, keeping the size.
    resize_range: least and greatest factor; of the image in the first stage, of the low-resolution size in the second.
    gaussian_probability: of Gaussian noise; otherwise it is Poisson noise.
    gaussian_sigma: standard deviation, of 255.
    poisson_scale: factor of the Poisson noise.
    gray_probability: of the same noise in all channels.
    jpeg_quality: 1 to 100.
  """

  blur_probability: float = 1.0
  kernel_sizes: tuple[int, int] = (7, 21)
  kernel_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
  sigma: Range = (0.2, 1.5)
  generalized_beta: Range = (0.5, 2.0)
  plateau_beta: Range = (1.0, 1.5)
  sinc_probability: float = 0.1
  resize_probabilities: tuple[float, ...] = (0.2, 0.7, 0.1)
  resize_range: Range = (0.3, 1.5)
  gaussian_probability: float = 0.5
  gaussian_sigma: Range = (1.0, 15.0)
  poisson_scale: Range = (0.05, 2.0)
  gray_probability: float = 0.4
  jpeg_quality: Range = (60.0, 95.0)

  def __post_init__(self):
    for field in ("blur", "sinc", "gaussian", "gray"):
      _check_probability(self, f"{field}_probability")
    _check_distribution(self, "kernel_probabilities", 6)
    _check_distribution(self, "resize_probabilities", 3)
    low, high = _check_range(self, "kernel_sizes", 3, float("inf"))
    _check(self, "kernel_sizes", low % 2 == high % 2 == 1, "must be odd")
    _check_range(self, "sigma", 0.05, float("inf"))
    low, high = _check_range(self, "generalized_beta", 0.1, float("inf"))
    _check(self, "generalized_beta", low <= 1 <= high, "must hold 1")
    low, high = _check_range(self, "plateau_beta", 0.1, float("inf"))
    _check(self, "plateau_beta", low <= 1 <= high, "must hold 1")
    low, high = _check_range(self, "resize_range", 0.05, 4)
    _check(self, "resize_range", low <= 1 <= high, "must hold 1")
    _check_range(self, "gaussian_sigma", 0, 255)
    _check_range(self, "poisson_scale", 0, float("inf"))
    _check_range(self, "jpeg_quality", 1, 100)


SECOND_STAGE = StageSettings(
  blur_probability=0.5,
  sigma=(0.2, 1.0),
  resize_probabilities=(0.3, 0.4, 0.3),
  resize_range=(0.6, 1.2),
  gaussian_sigma=(1.0, 12.0),
  poisson_scale=(0.05, 1.0),
  jpeg_quality=(60.0, 100.0),
)


@dataclasses.dataclass(frozen=True)
class DegradationSettings:
  """The whole degradation (defaults: the published 512 model).

  Attributes:
    scale: sides of the high-resolution image over those of the low-resolution one.
    sharpen: unsharp masking of the image before it is degraded; None is off.
    first, second: the stages; without a second one, the first's result is only brought to its size.
    final_sinc_probability: of a sinc filter at the end of the second stage.
    clean_probability: of an image that is only shrunk.
  """

  scale: int = 4
  sharpen: SharpenSettings | None = SharpenSettings()
  first: StageSettings = StageSettings()
  second: StageSettings | None = SECOND_STAGE
  final_sinc_probability: float = 0.8
  clean_probability: float = 0.01

  def __post_init__(self):
    _check(self, "scale", isinstance(self.scale, int) and self.scale >= 1, "must be a positive integer")
    _check_probability(self, "final_sinc_probability")
    _check_probability(self, "clean_probability")


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
