"""Measures of restored images: PSNR and SSIM against the original, NIQE and sharpness without it.

PSNR and SSIM are those of the super-resolution literature: on the luma of BT.601 in its 8-bit form of 16 to 235
(MATLAB's `rgb2ycbcr`), with a peak of 255, without cutting off a border. All but NIQE are JAX functions of batches, for
use in training too. Round images to 8 bits first where the figures of stored files are wanted.
"""

import functools
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.special

from stablesr_jax.errors import UserError

# BT.601's weights of R, G and B, for 219 levels above 16.
_LUMA = (65.481, 128.553, 24.966)

# SSIM's window and constants (Wang et al. 2004).
_SSIM_SIZE, _SSIM_SIGMA, _SSIM_K = 11, 1.5, (0.01, 0.03)

# NIQE (Mittal et al. 2013): sides of a block at full size, and the shapes among which distributions are fitted.
_BLOCK = 96
_SHAPES = np.arange(0.2, 10.001, 0.001)
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))


def luma(images: jax.Array) -> jax.Array:
  """The luma of BT.601, unrounded: (..., H, W, 3) in [0, 1] -> (..., H, W) float32 in [16, 235] / 255."""
  return _weighted(images) + 16 / 255


@jax.jit
def psnr_y(images: jax.Array, references: jax.Array) -> jax.Array:
  """Peak signal-to-noise ratio of the luma in dB; infinite for equal images.

  Args:
    images, references: (B, H, W, 3) in [0, 1].

  Returns:
    (B,) float32.

  Raises:
    UserError: the shapes differ, or are others.
  """
  _check_pair(images, references)
  # Of the difference, so that rounding is relative to it.
  difference = _weighted(images.astype(jnp.float32) - references.astype(jnp.float32))
  return -10 * jnp.log10((difference**2).mean((1, 2)))


@jax.jit
def ssim_y(images: jax.Array, references: jax.Array) -> jax.Array:
  """Structural similarity of the luma: Gaussian window 11x11, sigma 1.5, where the window lies within the image.

  Args:
    images, references: (B, H, W, 3) in [0, 1], sides of at least 11.

  Returns:
    (B,) float32, at most 1.

  Raises:
    UserError: the shapes differ, or are others.
  """
  _check_pair(images, references)
  if min(images.shape[1:3]) < _SSIM_SIZE:
    raise UserError(f"images {images.shape}: SSIM needs sides of at least {_SSIM_SIZE}")
  a, b = luma(images), luma(references)
  # Variances are differences of squares: about the mean there is less to lose to rounding.
  middle = b.mean((1, 2), keepdims=True)
  a, b = a - middle, b - middle
  mean_a, mean_b, aa, bb, ab = (_gaussian_window(x) for x in (a, b, a * a, b * b, a * b))
  var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
  mean_a, mean_b = mean_a + middle, mean_b + middle
  c1, c2 = (k**2 for k in _SSIM_K)
  structure = (2 * covariance + c2) / (var_a + var_b + c2)
  return ((2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1) * structure).mean((1, 2))


@jax.jit
def sharpness(images: jax.Array) -> jax.Array:
  """Mean magnitude of the luma's gradient (differences to the next pixels), in levels of 255 a pixel.

  It tells blurred from sharp, not good from bad: noise is sharp too. Compare it with the original's.

  Args:
    images: (B, H, W, 3) in [0, 1], sides of at least 2.

  Returns:
    (B,) float32.
  """
  y = 255 * luma(images)
  down, right = y[:, 1:, :-1] - y[:, :-1, :-1], y[:, :-1, 1:] - y[:, :-1, :-1]
  return jnp.sqrt(down**2 + right**2).mean((1, 2))


def niqe(image: np.ndarray) -> float:
  """Natural image quality evaluator, lower is better: how far local statistics are from those of pristine photographs.

  The published method with the published parameters: luma rounded to 8 bits, blocks of 96x96 from the top left without
  overlap, at full and half size. Below about 500 pixels a side there are few blocks, and values vary much; compare
  means over images of one size.

  Args:
    image: (H, W, 3) in [0, 1], sides of at least 192.

  Returns:
    The distance; about 2 to 5 for good photographs. NaN if the image has no structure at all.

  Raises:
    UserError: the shape is another.
  """
  if image.ndim != 3 or image.shape[-1] != 3 or min(image.shape[:2]) < 2 * _BLOCK:
    raise UserError(f"image {image.shape}: NIQE needs (height, width, 3) with sides of at least {2 * _BLOCK}")
  mean, covariance = _pristine()
  features = _niqe_features(image)
  complete = features[~np.isnan(features).any(axis=1)]
  if len(complete) < 2:
    return float("nan")
  difference = mean - np.nanmean(features, axis=0)
  inverse = np.linalg.pinv((covariance + np.cov(complete, rowvar=False)) / 2)
  return float(np.sqrt(difference @ inverse @ difference))


def _check_pair(images: jax.Array, references: jax.Array):
  if images.shape != references.shape or images.ndim != 4 or images.shape[-1] != 3:
    raise UserError(f"images {images.shape} and {references.shape}: expected the same (B, H, W, 3)")


def _weighted(images: jax.Array) -> jax.Array:
  """The luma without its offset, written out so that no device uses reduced precision."""
  r, g, b = (images[..., k].astype(jnp.float32) for k in range(3))
  return (_LUMA[0] * r + _LUMA[1] * g + _LUMA[2] * b) / 255


def _gaussian_window(planes: jax.Array) -> jax.Array:
  """Weighted means over windows: (B, H, W) -> (B, H - 10, W - 10)."""
  ticks = np.arange(_SSIM_SIZE) - _SSIM_SIZE // 2
  weights = np.exp(-(ticks**2) / (2 * _SSIM_SIGMA**2))
  for axis, w in ((1, weights / weights.sum()), (2, weights / weights.sum())):
    length = planes.shape[axis] - _SSIM_SIZE + 1
    planes = sum(
      (float(w[k]) * jax.lax.slice_in_dim(planes, k, k + length, axis=axis) for k in range(_SSIM_SIZE)),
      start=jnp.zeros((), planes.dtype),
    )
  return planes


@functools.cache
def _pristine() -> tuple[np.ndarray, np.ndarray]:
  """Mean (36,) and covariance (36, 36) of the features of pristine photographs."""
  with importlib.resources.files("stablesr_jax").joinpath("assets/niqe/pristine.npz").open("rb") as file:
    stored = np.load(file)
    return stored["mean"], stored["covariance"]


def _niqe_features(image: np.ndarray) -> np.ndarray:
  """(blocks, 36): 18 of each block at full size, and the same 18 at half size."""
  height, width = (side // _BLOCK * _BLOCK for side in image.shape[:2])
  y = np.round(np.asarray(image[:height, :width], np.float64) @ np.array(_LUMA) + 16)
  scales = []
  for block in (_BLOCK, _BLOCK // 2):
    normalized = _normalize(y)
    # (blocks, block, block), row by row
    tiles = normalized.reshape(height // _BLOCK, block, width // _BLOCK, block).swapaxes(1, 2).reshape(-1, block, block)
    scales.append(np.array([_block_features(tile) for tile in tiles]))
    y = _halve(y)
  return np.concatenate(scales, axis=1)


def _normalize(y: np.ndarray) -> np.ndarray:
  """Local mean removed and contrast divided out, with a 7x7 Gaussian window."""
  ticks = np.arange(-3, 4)
  window = np.exp(-(ticks**2) / (2 * (7 / 6) ** 2))
  window /= window.sum()

  def smooth(x):
    return scipy.ndimage.correlate1d(
      scipy.ndimage.correlate1d(x, window, axis=0, mode="nearest"), window, axis=1, mode="nearest"
    )

  mean = smooth(y)
  return (y - mean) / (np.sqrt(np.abs(smooth(y * y) - mean**2)) + 1)


def _block_features(block: np.ndarray) -> list[float]:
  shape, left, right = _fit_asymmetric_gaussian(block)
  features = [shape, (left + right) / 2]
  for shift in _SHIFTS:
    shape, left, right = _fit_asymmetric_gaussian(block * np.roll(block, shift, axis=(0, 1)))
    mean = (right - left) * scipy.special.gamma(2 / shape) / scipy.special.gamma(1 / shape)
    features += [shape, mean, left, right]
  return features


def _fit_asymmetric_gaussian(values: np.ndarray) -> tuple[float, float, float]:
  """Shape, left and right scale of an asymmetric generalized Gaussian, by moments; NaN where a side is empty."""
  values = values.ravel()
  below, above = values[values < 0], values[values > 0]
  if not (below.size and above.size):
    return float("nan"), float("nan"), float("nan")
  left, right = np.sqrt(np.mean(below**2)), np.sqrt(np.mean(above**2))
  ratio = left / right
  r = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
  target = r * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
  index = np.argmin((_shape_ratios() - target) ** 2)
  scale = _scale_factors()[index]
  return float(_SHAPES[index]), float(left * scale), float(right * scale)


@functools.cache
def _shape_ratios() -> np.ndarray:
  """(E|x|)^2 / E x^2 of a generalized Gaussian, for each shape."""
  g = scipy.special.gamma
  return g(2 / _SHAPES) ** 2 / (g(1 / _SHAPES) * g(3 / _SHAPES))


@functools.cache
def _scale_factors() -> np.ndarray:
  return np.sqrt(scipy.special.gamma(1 / _SHAPES) / scipy.special.gamma(3 / _SHAPES))


def _halve(y: np.ndarray) -> np.ndarray:
  """Half the size by bicubic interpolation (-0.5) with antialiasing, borders mirrored; even sides."""
  distance = np.abs(np.arange(-3.5, 4)) / 2
  near = (1.5 * distance - 2.5) * distance**2 + 1
  far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
  weights = np.where(distance <= 1, near, far) / 2
  for axis in (0, 1):
    padding = [(0, 0), (0, 0)]
    padding[axis] = (3, 3)
    padded = np.pad(y, padding, mode="symmetric")
    taps = (padded.take(np.arange(k, k + y.shape[axis], 2), axis) for k in range(8))
    y = sum((w * tap for w, tap in zip(weights, taps, strict=True)), start=np.zeros(()))
  return y
