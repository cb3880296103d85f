"""Blur kernels, and filtering with kernels that differ from image to image."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from stablesr_jax.degradation.settings import StageSettings

Scalar = jax.Array | float


def bivariate_kernel(
  width: int,
  sigma_x: Scalar,
  sigma_y: Scalar,
  theta: Scalar = 0.0,
  beta: Scalar = 1.0,
  plateau: jax.Array | bool = False,
  size: jax.Array | int | None = None,
) -> jax.Array:
  """A Gaussian kernel exp(-q^beta / 2), or a plateau 1 / (1 + q^beta), q the squared Mahalanobis distance.

  Args:
    width: side of the array, odd.
    sigma_x, sigma_y: standard deviations along the axes turned by `theta` radians; scalars, may be traced.
    beta: exponent; 1 is the plain Gaussian.
    size: side of the kernel within the array, odd, may be traced; by default all of it.

  Returns:
    (width, width) float32 that sums to 1, zero outside the kernel.
  """
  x, y = _coordinates(width)
  u = jnp.cos(theta) * x + jnp.sin(theta) * y
  v = jnp.cos(theta) * y - jnp.sin(theta) * x
  q = ((u / sigma_x) ** 2 + (v / sigma_y) ** 2) ** beta
  kernel = jnp.where(plateau, 1 / (1 + q), jnp.exp(-q / 2))
  return _normalized(kernel, width if size is None else size)


def sinc_kernel(width: int, cutoff, size=None) -> jax.Array:
  """The circular low-pass filter J1(cutoff * r) / r, which rings as sharpened and compressed images do.

  Args:
    width: side of the array, odd.
    cutoff: angular frequency in radians a pixel, up to pi; scalar, may be traced.
    size: as in `bivariate_kernel`.

  Returns:
    (width, width) float32 that sums to 1, zero outside the kernel.
  """
  x, y = _coordinates(width)
  r = np.hypot(x, y)
  middle = r == 0
  kernel = jnp.where(middle, cutoff / 2, _bessel_j1(cutoff * r, math.pi * r.max()) / np.where(middle, 1, r))
  return _normalized(kernel, width if size is None else size)


def random_kernel(key: jax.Array, stage: StageSettings, width: int) -> jax.Array:
  """One of a stage's kernels: sinc, or one of the six of `kernel_probabilities`; (width, width) float32."""
  keys = jax.random.split(key, 7)
  low, high = stage.kernel_sizes
  size = low + 2 * jax.random.randint(keys[0], (), 0, (high - low) // 2 + 1)
  kind = jax.random.choice(keys[1], 6, p=np.array(stage.kernel_probabilities))
  generalized, plateau, isotropic = kind // 2 == 1, kind // 2 == 2, kind % 2 == 0
  sigma_x, sigma_y = jax.random.uniform(keys[2], (2,), minval=stage.sigma[0], maxval=stage.sigma[1])
  theta = jax.random.uniform(keys[3], minval=-math.pi, maxval=math.pi)
  ranges = jnp.where(plateau, np.array(stage.plateau_beta), np.array(stage.generalized_beta))
  position = jax.random.uniform(keys[4], minval=-1.0)  # -1 is the range's start, 0 is 1, 1 its end
  beta = 1 + jnp.abs(position) * (jnp.where(position < 0, ranges[0], ranges[1]) - 1)
  blur = bivariate_kernel(
    width,
    sigma_x,
    jnp.where(isotropic, sigma_x, sigma_y),
    jnp.where(isotropic, 0.0, theta),
    jnp.where(generalized | plateau, beta, 1.0),
    plateau,
    size,
  )
  # Small kernels would turn a low cutoff into a box filter.
  lowest = jnp.where(size < 13, math.pi / 3, math.pi / 5)
  sinc = sinc_kernel(width, jax.random.uniform(keys[5], minval=lowest, maxval=math.pi), size)
  return jnp.where(jax.random.bernoulli(keys[6], stage.sinc_probability), sinc, blur)


def random_final_kernel(key: jax.Array, probability: float, sizes: tuple[int, int], width: int) -> jax.Array:
  """The sinc filter that ends the second stage, or with 1 - `probability` the one that changes nothing."""
  keys = jax.random.split(key, 3)
  size = sizes[0] + 2 * jax.random.randint(keys[0], (), 0, (sizes[1] - sizes[0]) // 2 + 1)
  sinc = sinc_kernel(width, jax.random.uniform(keys[1], minval=math.pi / 3, maxval=math.pi), size)
  x, y = _coordinates(width)
  return jnp.where(jax.random.bernoulli(keys[2], probability), sinc, ((x == 0) & (y == 0)).astype(np.float32))


def filter_planes(planes: jax.Array, kernel: jax.Array, size=None) -> jax.Array:
  """Correlates planes with a kernel; beyond the border they are reflected without repeating the edge.

  By FFT: a large kernel costs no more than a small one, and XLA has no fast convolution for kernels of one's own.

  Args:
    planes: (..., H, W) float32.
    kernel: (K, K) float32, K odd.
    size: (height, width) of the image at the top left of the planes, may be traced and should exceed K // 2; by
      default all. Values outside of it do not matter and what is returned there means nothing.

  Returns:
    (..., H, W) float32.
  """
  height, width = planes.shape[-2:]
  margin = kernel.shape[0] // 2
  rows, columns = size or (height, width)
  padded = jnp.take(planes, _reflected(height, rows, margin), axis=-2, mode="clip")
  padded = jnp.take(padded, _reflected(width, columns, margin), axis=-1, mode="clip")
  shape = (_fft_size(height + 2 * margin), _fft_size(width + 2 * margin))
  # Circular, but the first 2 * margin rows and columns take all that wraps around.
  kernel = kernel[::-1, ::-1].reshape(*[1] * (planes.ndim - 2), *kernel.shape)
  spectrum = jnp.fft.rfft2(padded, shape) * jnp.fft.rfft2(kernel, shape)
  filtered = jnp.fft.irfft2(spectrum, shape)
  return filtered[..., 2 * margin : 2 * margin + height, 2 * margin : 2 * margin + width]


def _coordinates(width: int) -> tuple[np.ndarray, np.ndarray]:
  """x and y of every entry of a kernel, from its middle."""
  ticks = np.arange(width, dtype=np.float32) - width // 2
  x, y = np.meshgrid(ticks, ticks)
  return x, y


def _normalized(kernel: jax.Array, size) -> jax.Array:
  x, y = _coordinates(kernel.shape[0])
  kernel = jnp.where(np.maximum(abs(x), abs(y)) <= size // 2, kernel, 0)
  return kernel / kernel.sum()


def _bessel_j1(x: jax.Array, largest: float) -> jax.Array:
  """J1 of 0 <= x <= largest: the mean of sin(t) sin(x sin(t)) over a circle.

  The rule of equal steps is exact to rounding once there are some more of them than `largest`.
  """
  quarter = math.ceil((largest + 30) / 4)
  sines = np.sin((np.arange(quarter) + 0.5) * (math.pi / 2 / quarter)).astype(np.float32)
  sines = sines.reshape(*[1] * x.ndim, quarter)
  return jnp.mean(sines * jnp.sin(x[..., None] * sines), axis=-1)


def _reflected(length: int, inside, margin: int) -> jax.Array:
  """Where each of length + 2 * margin entries comes from when the first `inside` ones are reflected."""
  index = jnp.abs(jnp.arange(-margin, length + margin))
  index = jnp.where(index >= inside, 2 * (inside - 1) - index, index)
  return jnp.clip(index, 0, length - 1)


@functools.cache
def _fft_size(least: int) -> int:
  """The next even number without prime factors above 5."""
  size = least + least % 2
  while True:
    rest = size
    for prime in (2, 3, 5):
      while rest % prime == 0:
        rest //= prime
    if rest == 1:
      return size
    size += 2
