"""The trainable encoder that reads the low-resolution latent at a timestep (3.1, appendix A)."""

import flax.linen as nn
import jax

from stablesr_jax.config import ComputeConfig, TimeAwareEncoderConfig
from stablesr_jax.models.layers import Downsample, ResidualBlock, SelfAttentionBlock, TimeEmbedding, conv


class EncoderBlock(nn.Module):
  """A residual block and, where its level has it, plain self-attention."""

  features: int
  heads: int  # 0: no attention
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array | None) -> jax.Array:
    h = ResidualBlock(self.features, self.compute, name="residual")(x, time)
    return SelfAttentionBlock(self.heads, self.compute, name="attention")(h) if self.heads else h


class TimeAwareEncoder(nn.Module):
  """The contracting path of a UNet, with one output map for each scale.

  A scale's map is the feature just before the downsampling, at the last scale the one after the middle block;
  each goes through a residual block of its own to `out_channels`.
  """

  config: TimeAwareEncoderConfig
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, x: jax.Array, t: jax.Array) -> list[jax.Array]:
    """The clean LR latent (B, h, w, 4) and timesteps (B or 1,) -> maps (B, h / 2**i, w / 2**i, out_channels)."""
    c, compute = self.config, self.compute
    time = TimeEmbedding(c.channels, compute, name="time_embedding")(t) if c.time_aware else None
    widths = [c.channels * m for m in c.channel_multipliers]
    h = conv(c.channels, compute, name="conv_in")(x)
    features = []
    for level, width in enumerate(widths):
      heads = c.heads if level in c.attention_levels else 0
      for i in range(c.blocks_per_level):
        h = EncoderBlock(width, heads, compute, name=f"down_{level}_{i}")(h, time)
      if level < len(widths) - 1:
        features.append(h)
        h = Downsample(compute=compute, name=f"downsample_{level}")(h)
    h = EncoderBlock(widths[-1], c.heads, compute, name="middle_0")(h, time)
    features.append(EncoderBlock(widths[-1], 0, compute, name="middle_1")(h, time))
    return [
      ResidualBlock(c.out_channels, compute, name=f"out_{level}")(h, time) for level, h in enumerate(features)
    ]
