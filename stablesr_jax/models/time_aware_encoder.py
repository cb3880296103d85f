"""The trainable encoder that reads the low-resolution latent at a timestep (3.1, appendix A)."""

import flax.linen as nn
from jaxtyping import Array, Float, Shaped

from stablesr_jax.config import ComputeConfig, TimeAwareEncoderConfig
from stablesr_jax.models.layers import Conv, Downsample, ResidualBlock, SelfAttentionBlock, TimeEmbedding


class EncoderBlock(nn.Module):
  """A residual block and, where its level has it, plain self-attention."""

  features: int
  heads: int  # 0: no attention
  compute: ComputeConfig
  norm_groups: int = 32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], time: Float[Array, "#b t"] | None) -> Float[Array, "b h w d"]:
    h = ResidualBlock(self.features, self.compute, groups=self.norm_groups, name="residual")(x, time)
    return SelfAttentionBlock(self.heads, self.compute, self.norm_groups, name="attention")(h) if self.heads else h


class TimeAwareEncoder(nn.Module):
  """The contracting path of a UNet, with one output map for each scale.

  A scale's map is the feature just before the downsampling, at the last scale the one after the middle block;
  each goes through a residual block of its own to `out_channels`.
  """

  config: TimeAwareEncoderConfig
  compute: ComputeConfig = ComputeConfig()

  def setup(self):
    c, compute = self.config, self.compute
    widths = [c.channels * m for m in c.channel_multipliers]
    encoder_block = nn.remat(EncoderBlock) if compute.remat else EncoderBlock
    block = lambda level, heads: encoder_block(widths[level], heads, compute, c.norm_groups)
    levels = range(len(widths))
    if c.time_aware:
      self.time_embedding = TimeEmbedding(c.channels, compute)
    self.conv_in = Conv(c.channels, compute)
    self.down = [
      [block(i, c.heads if i in c.attention_levels else 0) for _ in range(c.blocks_per_level)] for i in levels
    ]
    self.downsample = [Downsample(compute=compute) for _ in levels[:-1]]
    self.middle = [block(levels[-1], c.heads), block(levels[-1], 0)]
    self.out = [ResidualBlock(c.out_channels, compute, groups=c.norm_groups) for _ in levels]

  def embed_time(self, t: Shaped[Array, " b"]) -> Float[Array, "b t"] | None:
    """The embedding of timesteps, of 4 * channels; None if the encoder is not time-aware."""
    return self.time_embedding(t) if self.config.time_aware else None

  def encode(self, x: Float[Array, "b h w c"], time: Float[Array, "#b t"] | None) -> list[Float[Array, "b _ _ s"]]:
    """As `__call__`, with the time from `embed_time`."""
    h = self.conv_in(x)
    features = []
    for level, blocks in enumerate(self.down):
      for block in blocks:
        h = block(h, time)
      if level < len(self.down) - 1:
        features.append(h)
        h = self.downsample[level](h)
    for block in self.middle:
      h = block(h, time)
    features.append(h)
    return [out(feature, time) for out, feature in zip(self.out, features, strict=True)]

  def __call__(self, x: Float[Array, "b h w c"], t: Shaped[Array, "#b"]) -> list[Float[Array, "b _ _ s"]]:
    """The clean LR latent and its timesteps -> maps (b, h / 2**i, w / 2**i, out_channels)."""
    return self.encode(x, self.embed_time(t))
