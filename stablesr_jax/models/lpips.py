"""LPIPS, the learned perceptual distance (v0.1 with VGG16), a loss of the autoencoder's and CFW's training (3.2).

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (2018).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stablesr_jax.config import ComputeConfig, LPIPSConfig
from stablesr_jax.models.layers import Conv
from stablesr_jax.models.parameters import Params

# Of VGG16's five stages: how many convolutions each has, and how many times `width` channels.
CONVOLUTIONS = (2, 2, 3, 3, 3)
_MULTIPLIERS = (1, 2, 4, 8, 8)
# LPIPS v0.1 brings [-1, 1] to about the statistics that VGG16 was trained with.
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 1, 1, 3)
SCALE = np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 1, 1, 3)


class VGGStage(nn.Module):
  """Convolutions of one width, a ReLU after each."""

  features: int
  convolutions: int
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
    # He's initialisation keeps the features of a random network, as in tests, at one size throughout.
    kernel_init = nn.initializers.he_normal()
    for i in range(self.convolutions):
      x = nn.relu(Conv(self.features, self.compute, kernel_init=kernel_init, name=f"conv_{i}")(x))
    return x


class LPIPS(nn.Module):
  """How different two images look: 0 for the same, about 1 for unrelated ones.

  The images go through the network one after the other. So where one of them is a constant to differentiation, as a
  loss's target is, nothing of its pass is kept or differentiated.
  """

  config: LPIPSConfig = LPIPSConfig()
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "_ _ _ 3"]) -> Float[Array, " b"]:
    """The distance of each image from its counterpart, float32; both in [-1, 1] and of one shape.

    Raises:
      ValueError: The images differ in shape, or a side is shorter than 16 pixels.
    """
    if a.shape != b.shape:
      raise ValueError(f"images of shapes {a.shape} and {b.shape} cannot be compared")
    shortest = LPIPSConfig.smallest_image
    if min(a.shape[1:3]) < shortest:
      raise ValueError(f"images of {a.shape[2]}x{a.shape[1]} are too small: LPIPS needs {shortest}x{shortest}")
    stage = nn.remat(VGGStage) if self.compute.remat else VGGStage
    stages = [
      stage(multiplier * self.config.width, convolutions, self.compute, name=f"stage_{i}")
      for i, (multiplier, convolutions) in enumerate(zip(_MULTIPLIERS, CONVOLUTIONS, strict=True))
    ][: self.config.stages]
    total = jnp.zeros(a.shape[0], jnp.float32)
    for i, (x, y) in enumerate(zip(_features(stages, a), _features(stages, b), strict=True)):
      # The head is linear, so it may as well come after the mean over the pixels.
      difference = jnp.mean(jnp.square(_unit(x) - _unit(y)), axis=(1, 2))
      # The published heads have no negative weights, or it would be no distance.
      head = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.uniform(1.0), name=f"head_{i}")
      total += head(difference)[:, 0]
    return total


def _features(stages: Sequence[nn.Module], image: jax.Array) -> list[jax.Array]:
  """What each stage gives, before the pooling that follows it."""
  h, features = (image.astype(jnp.float32) - SHIFT) / SCALE, []
  for i, stage in enumerate(stages):
    if i:
      h = nn.max_pool(h, (2, 2), (2, 2))
    h = stage(h)
    features.append(h)
  return features


def _unit(x: jax.Array) -> jax.Array:
  """Features of unit length at each pixel, float32; zero where they all are zero."""
  x = x.astype(jnp.float32)
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  # A square root's slope is infinite at zero: NaN on the way back, even though the ReLU before it would stop that.
  length = jnp.sqrt(jnp.maximum(squared, 1e-20))
  return x / (length + 1e-10)


def abstract_params(config: LPIPSConfig) -> Params:
  """The network's parameters as `jax.ShapeDtypeStruct`, float32."""
  shortest = LPIPSConfig.smallest_image
  image = jnp.zeros((1, shortest, shortest, 3))
  return jax.eval_shape(lambda key: LPIPS(config).init(key, image, image), jax.random.key(0))["params"]
