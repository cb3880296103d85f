"""Real-ESRGAN's two-stage degradation (paper section 4.1) as one compiled program."""

import functools

import jax
import jax.numpy as jnp

from stablesr_jax import parallel, pixels
from stablesr_jax.config import Platform
from stablesr_jax.degradation import blur, jpeg, noise
from stablesr_jax.degradation.settings import DegradationSettings, StageSettings
from stablesr_jax.degradation.sharpen import unsharp_mask
from stablesr_jax.errors import UserError


def degrade(
  key: jax.Array, images: jax.Array, settings: DegradationSettings, *, platform: Platform | None = None
) -> jax.Array:
  """Draws a low-resolution image for each image.

  Every image has its own kernels, sizes, noise, qualities and order of operations, drawn from its own key, so what is
  drawn for it does not depend on the rest of the batch.

  Args:
    key: one key, from which image i takes fold_in(key, i); or a key for each image, (B,).
    images: (B, H, W, 3) float32 in [0, 1]; sides are multiples of `settings.scale`.
    platform: The kind of device that computes, by default JAX's default; changes how fast it goes, not what comes out.

  Returns:
    (B, H / scale, W / scale, 3) float32 in [0, 1].

  Raises:
    UserError: the images have another shape.
  """
  return degrade_pairs(key, images, settings, platform=platform)[1]


def degrade_pairs(
  key: jax.Array, images: jax.Array, settings: DegradationSettings, *, platform: Platform | None = None
) -> tuple[jax.Array, jax.Array]:
  """The training pairs (target, low-resolution image): `degrade` of the images, and what it should lead back to.

  The target is what was degraded, `sharpen` of the images, or where `settings.sharpen.target` is off the images.
  """
  _check(images, settings)
  if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    key = jax.random.wrap_key_data(key)
  keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(images)))
  return _degrade_pairs(keys, images, settings, platform=platform)


@functools.partial(jax.jit, static_argnames=("settings", "platform"))
def _degrade_pairs(
  keys: jax.Array, images: jax.Array, settings: DegradationSettings, *, platform: Platform | None
) -> tuple[jax.Array, jax.Array]:
  # On a CPU one image after the other, so that branches not taken cost nothing and small sizes get a smaller canvas.
  on_cpu = (platform or parallel.platform()) == "cpu"

  def pair(key, image):
    # Inside, channels come first: all that is costly works on the last two axes.
    planes = _sharpen(jnp.moveaxis(image, -1, 0), settings)
    target = jnp.moveaxis(planes, 0, -1) if settings.sharpen is None or settings.sharpen.target else image
    low = _degrade_one(key, planes, settings, canvases=(0.5, 0.75, 1.0) if on_cpu else ())
    return target, jnp.moveaxis(low, 0, -1)

  images = images.astype(jnp.float32)
  return jax.lax.map(lambda args: pair(*args), (keys, images)) if on_cpu else jax.vmap(pair)(keys, images)


@functools.partial(jax.jit, static_argnames="settings")
def sharpen(images: jax.Array, settings: DegradationSettings) -> jax.Array:
  """What is degraded: (B, H, W, 3) float32 in [0, 1], unsharp-masked where the settings say so."""
  _check(images, settings)
  return jnp.moveaxis(_sharpen(jnp.moveaxis(images.astype(jnp.float32), -1, 1), settings), 1, -1)


def _check(images: jax.Array, settings: DegradationSettings):
  if images.ndim != 4 or images.shape[-1] != 3 or any(side % settings.scale for side in images.shape[1:3]):
    raise UserError(f"images {images.shape}: expected (B, H, W, 3), sides a multiple of {settings.scale}")


def _sharpen(planes: jax.Array, settings: DegradationSettings) -> jax.Array:
  s = settings.sharpen
  return planes if s is None else unsharp_mask(planes, s.weight, s.radius, s.threshold)


def _degrade_one(
  key: jax.Array, planes: jax.Array, settings: DegradationSettings, canvases: tuple[float, ...]
) -> jax.Array:
  """(3, H, W) to (3, H / scale, W / scale).

  Sizes are drawn, shapes are fixed: an image of any size lies at the top left of a canvas for the largest.

  Args:
    canvases: factors below the largest for which the first stage has a canvas of its own.
  """
  first, second, scale = settings.first, settings.second, settings.scale
  sides = planes.shape[1:]
  low_sides = (sides[0] // scale, sides[1] // scale)
  width = max(stage.kernel_sizes[1] for stage in (first, second) if stage)
  keys = jax.random.split(key, 10)

  x = _maybe_blur(keys[0], planes, first, width, sides)
  factor = _random_factor(keys[1], first)
  size = tuple(jnp.floor(side * factor).astype(jnp.int32) for side in sides)
  if second is None:
    low_size = low_sides
    low_canvas = low_least = low_sides
  else:
    low_factor = _random_factor(keys[2], second)
    low_size = tuple(jnp.floor(side * low_factor).astype(jnp.int32) for side in low_sides)
    low_canvas = _canvas(low_sides, second.resize_range[1])
    low_least = tuple(int(side * second.resize_range[0]) for side in low_sides)

  def between(canvas, x):
    """From the first stage's resizing to the second's, on a canvas for the former's result."""
    mode = _random_mode(keys[3])
    count = pixels.taps_for(1 / first.resize_range[0])
    axes = zip(sides, size, canvas, strict=True)
    x = pixels.apply_taps(x, *(pixels.axis_taps(mode, n, m, 1 / factor, length, count) for n, m, length in axes))
    x = _noise_and_jpeg(keys[4], x, first, size)
    if second is not None:
      x = _maybe_blur(keys[5], x, second, width, size)
    return _resize_to(keys[6], x, size, low_size, low_canvas, low_least)

  largest = first.resize_range[1]
  factors = [f for f in canvases if first.resize_range[0] < f < largest] + [largest]
  branches = [functools.partial(between, _canvas(sides, f)) for f in factors]
  x = jax.lax.switch(sum((factor > f).astype(jnp.int32) for f in factors[:-1]), branches, x)

  if second is not None:
    x = noise.add_noise(keys[7], x, second, low_size)
    x = _finish(keys[8], x, low_size, low_sides, width, settings)
  clean = pixels.resize(planes, *low_sides, "area")
  return jnp.clip(jnp.where(jax.random.bernoulli(keys[9], settings.clean_probability), clean, x), 0.0, 1.0)


def _finish(key, x, size, sides, width: int, settings: DegradationSettings) -> jax.Array:
  """Resizing to the low-resolution size with the last filter, and JPEG, in either order."""
  order, filter_key, mode_key, quality_key = jax.random.split(key, 4)
  second = settings.second
  assert second is not None
  kernel = blur.random_final_kernel(filter_key, settings.final_sinc_probability, second.kernel_sizes, width)
  quality = _uniform(quality_key, second.jpeg_quality)

  def to_size(x):
    return blur.filter_planes(_resize_to(mode_key, x, size, sides, sides, sides), kernel)

  return jax.lax.cond(
    jax.random.bernoulli(order),
    lambda x: jpeg.compress(to_size(x), quality),
    lambda x: to_size(jpeg.compress(x, quality)),
    x,
  )


def _maybe_blur(key, x, stage: StageSettings, width: int, size) -> jax.Array:
  key, taken = jax.random.split(key)
  return jax.lax.cond(
    jax.random.bernoulli(taken, stage.blur_probability),
    lambda x: blur.filter_planes(x, blur.random_kernel(key, stage, width), size),
    lambda x: x,
    x,
  )


def _noise_and_jpeg(key, x, stage: StageSettings, size) -> jax.Array:
  noise_key, quality_key = jax.random.split(key)
  return jpeg.compress(noise.add_noise(noise_key, x, stage, size), _uniform(quality_key, stage.jpeg_quality))


def _resize_to(key, x, size, target, canvas, least) -> jax.Array:
  """The image of `size` at the top left of x, resized to `target`, which is no less than `least`, on a canvas."""
  mode = _random_mode(key)
  count = max(pixels.taps_for(side / low) for side, low in zip(x.shape[1:], least, strict=True))
  axes = zip(size, target, canvas, strict=True)
  return pixels.apply_taps(x, *(pixels.axis_taps(mode, n, m, n / m, length, count) for n, m, length in axes))


def _canvas(sides, factor: float) -> tuple[int, int]:
  """Shapes for an image enlarged by up to `factor`, in whole JPEG blocks."""
  height, width = (-(-int(side * factor) // 16) * 16 for side in sides)
  return height, width


def _random_factor(key, stage: StageSettings) -> jax.Array:
  kind_key, factor_key = jax.random.split(key)
  low, high = stage.resize_range
  up, down, _ = stage.resize_probabilities
  kind, position = jax.random.uniform(kind_key), jax.random.uniform(factor_key)
  return jnp.where(kind < up, 1 + position * (high - 1), jnp.where(kind < up + down, low + position * (1 - low), 1.0))


def _random_mode(key) -> jax.Array:
  return jax.random.randint(key, (), 0, len(pixels.MODES))


def _uniform(key, limits: tuple[float, float]) -> jax.Array:
  return jax.random.uniform(key, minval=limits[0], maxval=limits[1])
