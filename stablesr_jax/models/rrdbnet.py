"""Residual-in-residual dense blocks: Real-ESRGAN's generator, and the body of CFW."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stablesr_jax.config import ComputeConfig, RRDBNetConfig
from stablesr_jax.models.layers import Conv, Mask, upsample


def _leaky_relu(x: jax.Array) -> jax.Array:
  return nn.leaky_relu(x, 0.2)


class DenseBlock(nn.Module):
  """Five convolutions, each of which sees all the features before it; a fifth of the result is added."""

  growth: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], mask: Mask = None) -> Float[Array, "b h w c"]:
    h = x
    for i in range(1, 5):
      h = jnp.concatenate([h, _leaky_relu(Conv(self.growth, self.compute, name=f"conv{i}")(h, mask))], axis=-1)
    return x + 0.2 * Conv(x.shape[-1], self.compute, name="conv5")(h, mask)


class RRDB(nn.Module):
  """Three dense blocks; a fifth of their result is added to the input. Keeps the channels."""

  growth: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], mask: Mask = None) -> Float[Array, "b h w c"]:
    h = x
    for i in range(1, 4):
      h = DenseBlock(self.growth, self.compute, name=f"dense{i}")(h, mask)
    return x + 0.2 * h


class RRDBNet(nn.Module):
  """Enlarges an image by 4."""

  config: RRDBNetConfig = RRDBNetConfig()
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b 4*h 4*w 3"]:
    """Images in [0, 1] -> float32, about [0, 1], not clipped."""
    c = self.config
    first = Conv(c.features, self.compute, name="conv_first")(image)
    h = first
    for i in range(c.blocks):
      h = RRDB(c.growth, self.compute, name=f"body_{i}")(h)
    h = first + Conv(c.features, self.compute, name="conv_body")(h)
    for name in ("conv_up1", "conv_up2"):
      h = _leaky_relu(Conv(c.features, self.compute, name=name)(upsample(h)))
    h = _leaky_relu(Conv(c.features, self.compute, name="conv_hr")(h))
    return Conv(3, self.compute, name="conv_last")(h).astype(jnp.float32)
