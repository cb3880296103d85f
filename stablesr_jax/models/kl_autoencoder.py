"""Stable Diffusion's KL autoencoder, its decoder optionally refined by controllable feature wrapping."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from stablesr_jax.config import AutoencoderConfig, ComputeConfig
from stablesr_jax.models.attention import attention
from stablesr_jax.models.feature_wrapping import ControllableFeatureWrapping, Scalar
from stablesr_jax.models.layers import Conv, Downsample, ResidualBlock, Upsample, group_norm

Features = Float[Array, "b h w c"]
Images = Float[Array, "b h w 3"]


def residual_block(features: int, config: AutoencoderConfig, compute: ComputeConfig, name: str) -> ResidualBlock:
  """The autoencoder's kind of residual block."""
  block = nn.remat(ResidualBlock) if compute.remat else ResidualBlock
  return block(features, compute, epsilon=1e-6, groups=config.norm_groups, name=name)


class PixelAttention(nn.Module):
  """Self-attention over all pixels with a single head, added to its input."""

  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: Features) -> Features:
    b, height, width, c = x.shape
    h = group_norm(self.compute, groups=self.config.norm_groups, epsilon=1e-6, name="norm")(x).reshape(
      b, height * width, c
    )
    project = lambda name: nn.Dense(c, dtype=self.compute.jax_dtype, name=name)
    q, k, v = (project(name)(h)[:, :, None] for name in ("q", "k", "v"))
    return x + project("out")(attention(q, k, v, self.compute)[:, :, 0]).reshape(x.shape)


class Middle(nn.Module):
  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, h: Features) -> Features:
    h = residual_block(h.shape[-1], self.config, self.compute, name="residual_0")(h)
    if self.config.attention:
      h = PixelAttention(self.config, self.compute, name="attention")(h)
    return residual_block(h.shape[-1], self.config, self.compute, name="residual_1")(h)


class Encoder(nn.Module):
  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, image: Images) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
    c, compute = self.config, self.compute
    last = len(c.channel_multipliers) - 1
    h = Conv(c.channels, compute, name="conv_in")(image)
    features = []
    for level, multiplier in enumerate(c.channel_multipliers):
      for i in range(c.blocks_per_level):
        h = residual_block(c.channels * multiplier, c, compute, name=f"down_{level}_{i}")(h)
      if 0 < level < last:
        features.append(h)
      if level < last:
        h = Downsample(symmetric=False, compute=compute, name=f"downsample_{level}")(h)
    h = Middle(c, compute, name="middle")(h)
    h = nn.silu(group_norm(compute, groups=c.norm_groups, epsilon=1e-6, name="norm_out")(h))
    h = Conv(2 * c.latent_channels, compute, name="conv_out")(h)
    return Conv(2 * c.latent_channels, compute, size=1, name="quant")(h), features


class Decoder(nn.Module):
  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(
    self, z: Features, features: Sequence[Float[Array, "b _ _ _"]] | None, fidelity_weight: Scalar
  ) -> Float[Array, "b h2 w2 3"]:
    c, compute = self.config, self.compute
    last = len(c.channel_multipliers) - 1
    h = Conv(c.latent_channels, compute, size=1, name="post_quant")(z)
    h = Conv(c.channels * c.channel_multipliers[-1], compute, name="conv_in")(h)
    h = Middle(c, compute, name="middle")(h)
    for level in reversed(range(last + 1)):
      for i in range(c.blocks_per_level + 1):
        width = c.channels * c.channel_multipliers[level]
        h = residual_block(width, c, compute, name=f"up_{level}_{i}")(h)
      if c.cfw and features is not None and 0 < level < last:
        wrap = ControllableFeatureWrapping(c.cfw_growth, c.cfw_blocks, compute, c.norm_groups, name=f"cfw_{level}")
        h = wrap(features[level - 1], h, fidelity_weight)
      if level:
        h = Upsample(compute, name=f"upsample_{level}")(h)
    # The last stage is float32: it writes the pixels.
    h = nn.silu(nn.GroupNorm(c.norm_groups, epsilon=1e-6, dtype=jnp.float32, name="norm_out")(h))
    return Conv(3, dataclasses.replace(compute, dtype="float32"), name="conv_out")(h)


class Autoencoder(nn.Module):
  """Images (B, H, W, 3) in [-1, 1] <-> latents (B, H/f, W/f, 4), f = `config.downsampling` (8).

  Latents here are unscaled: the diffusion's are `config.scale_factor` times a posterior's sample.
  """

  config: AutoencoderConfig
  compute: ComputeConfig = ComputeConfig()

  def setup(self):
    self.encoder = Encoder(self.config, self.compute)
    self.decoder = Decoder(self.config, self.compute)

  def encode(self, image: Images) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
    """The posterior of an image and the features that CFW wraps.

    Args:
      image: Images in [-1, 1], sides divisible by f.

    Returns:
      moments: Mean and log variance of the latent, float32 (see `posterior`).
      features: The encoder's features at 1/2, 1/4, ... of the image (the first and last scales left out).
    """
    moments, features = self.encoder(image)
    return moments.astype(jnp.float32), features

  def decode(
    self,
    z: Features,
    features: Sequence[Float[Array, "b _ _ _"]] | None = None,
    fidelity_weight: Scalar = 0.0,
  ) -> Float[Array, "b h2 w2 3"]:
    """Images of latents, float32, about [-1, 1], not clipped.

    Args:
      z: The latents, unscaled.
      features: The features from `encode` of the LR image enlarged to the output's size; None decodes without CFW.
      fidelity_weight: The w of CFW in [0, 1]; may be traced.
    """
    return self.decoder(z, features, fidelity_weight)

  def __call__(self, image: Images) -> Images:
    """Reconstructs an image from its posterior's mean, with CFW at w = 1 where there is one."""
    moments, features = self.encode(image)
    mean, _ = posterior(moments)
    return self.decode(mean, features, 1.0)


def posterior(moments: Float[Array, "*b h w c2"]) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w c"]]:
  """The mean and the standard deviation that moments stand for; the log variance is kept in [-30, 20]."""
  mean, log_variance = jnp.split(moments, 2, axis=-1)
  return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))


def sample_posterior(moments: Float[Array, "*b h w c2"], noise: Float[Array, "*b h w c"]) -> Float[Array, "*b h w c"]:
  """A sample of the posterior, unscaled, made of standard normal noise."""
  mean, std = posterior(moments)
  return mean + std * noise
