"""Controllable feature wrapping: the LR image's features refine the decoder (3.2)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from stablesr_jax.config import ComputeConfig
from stablesr_jax.models.layers import Mask, ResidualBlock
from stablesr_jax.models.rrdbnet import RRDB

Scalar = Float[Array, ""] | float


class ControllableFeatureWrapping(nn.Module):
  """F_m = F_d + w * C(cat(F_e, F_d)), C: residual block, RRDB blocks, residual block."""

  growth: int
  blocks: int
  compute: ComputeConfig = ComputeConfig()
  norm_groups: int = 32

  @nn.compact
  def __call__(
    self,
    encoder_feature: Float[Array, "b h w c"],
    decoder_feature: Float[Array, "b h w c"],
    weight: Scalar,
    mask: Mask = None,
  ) -> Float[Array, "b h w c"]:
    """The decoder's feature, refined with a weight w in [0, 1]."""
    channels = decoder_feature.shape[-1]
    h = jnp.concatenate([encoder_feature, decoder_feature], axis=-1)
    residual = lambda name: ResidualBlock(channels, self.compute, epsilon=1e-6, groups=self.norm_groups, name=name)
    h = residual("residual_in")(h, mask=mask)
    for i in range(self.blocks):
      h = RRDB(self.growth, self.compute, name=f"rrdb_{i}")(h, mask)
    h = residual("residual_out")(h, mask=mask)
    return decoder_feature + jnp.asarray(weight, h.dtype) * h
