"""Gaussian and Poisson noise."""

import math

import jax
import jax.numpy as jnp

from stablesr_jax.degradation.settings import StageSettings


def add_noise(key: jax.Array, planes: jax.Array, stage: StageSettings, size) -> jax.Array:
  """Adds a stage's noise to one image.

  Args:
    planes: (3, H, W) float32.
    size: (height, width) of the image at the top left of the planes; may be traced.

  Returns:
    (3, H, W) float32 in [0, 1], zero outside the image.
  """
  keys = jax.random.split(key, 5)
  gaussian = jax.random.bernoulli(keys[0], stage.gaussian_probability)
  gray = jax.random.bernoulli(keys[1], stage.gray_probability)
  low, high = stage.gaussian_sigma
  sigma = jax.random.uniform(keys[2], minval=low, maxval=high) / 255
  low, high = stage.poisson_scale
  scale = jax.random.uniform(keys[3], minval=low, maxval=high)
  inside = (jnp.arange(planes.shape[1])[:, None] < size[0]) & (jnp.arange(planes.shape[2])[None, :] < size[1])

  def noise(source):  # of an image of one plane or three
    uniform = jax.random.uniform(keys[4], source.shape, minval=2.0**-24)  # inside (0, 1)
    added = jax.lax.cond(
      gaussian,
      lambda: sigma * _normal(uniform),
      lambda: scale * poisson_noise(uniform, source, inside),
    )
    return jnp.broadcast_to(added, planes.shape)

  red, green, blue = planes
  luma = (0.2989 * red + 0.587 * green + 0.114 * blue)[None]
  added = jax.lax.cond(gray, lambda: noise(luma), lambda: noise(planes))
  return jnp.where(inside[None], jnp.clip(planes + added, 0.0, 1.0), 0.0)


def poisson_noise(uniform: jax.Array, planes: jax.Array, inside: jax.Array) -> jax.Array:
  """Shot noise of an image that holds as many quanta as it has grey levels.

  The image is rounded to 8 bits; with n different values, the rate at full brightness is n rounded up to a power of 2.

  Args:
    uniform: (C, H, W) float32, uniform in (0, 1).
    planes: (C, H, W) float32 in [0, 1].
    inside: (H, W) bool, where the image is.

  Returns:
    (C, H, W) float32: the noise alone, in the image's units.
  """
  levels = jnp.round(jnp.clip(planes, 0.0, 1.0) * 255)
  quanta = 2.0 ** jnp.sum(_distinct(levels.astype(jnp.uint32), inside) > 2 ** jnp.arange(8))
  rate = levels / 255 * quanta
  return (poisson_quantile(uniform, rate) - rate) / quanta


def _distinct(levels: jax.Array, inside: jax.Array) -> jax.Array:
  """How many of the levels 0 to 255 an image has; () int32.

  Each level is a bit of one of eight words, which are made in one pass. A scatter into 256 counts is as fast on a CPU,
  but goes index by index on a TPU.
  """
  bit = jnp.where(inside[None], jnp.uint32(1) << levels % 32, jnp.uint32(0))
  words = [jnp.where(levels // 32 == word, bit, jnp.uint32(0)) for word in range(8)]
  join = lambda a, b: [jax.lax.bitwise_or(x, y) for x, y in zip(a, b, strict=True)]
  columns = jax.lax.reduce(words, [jnp.uint32(0)] * 8, join, (0, 1))
  return jax.lax.population_count(jax.lax.reduce_or(jnp.stack(columns), (1,))).sum().astype(jnp.int32)


def poisson_quantile(uniform: jax.Array, rate: jax.Array) -> jax.Array:
  """The Poisson variable with the given rate at a uniform one's quantile, float32, of the same shape.

  Up to a rate of 4 by summing the distribution. Above, by the quantile's expansion around the normal one's, which is
  off by one in less than one case of 500. Both are plain arithmetic; rejection samplers loop until every pixel is done.
  """
  w = _normal(uniform)
  root = jnp.sqrt(jnp.maximum(rate, 1.0))
  many = jnp.floor(
    rate
    + root * w
    + (1 / 3 + w**2 / 6)
    - (w / 36 + w**3 / 72) / root
    + (-8 / 405 + 7 * w**2 / 810 + w**4 / 270) / root**2
  )
  low = jnp.minimum(rate, 4.0)
  term = jnp.exp(-low)
  total, few = term, jnp.zeros_like(uniform)
  for k in range(1, 19):
    few += uniform > total
    term *= low / k
    total += term
  return jnp.where(rate > 4, many, few)


def _normal(uniform: jax.Array) -> jax.Array:
  return math.sqrt(2) * jax.lax.erf_inv(2 * uniform - 1)
