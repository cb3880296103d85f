"""Stable Diffusion's KL autoencoder, its decoder optionally refined by controllable feature wrapping."""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stablesr_jax.config import AutoencoderConfig, ComputeConfig
from stablesr_jax.models.attention import attention
from stablesr_jax.models.feature_wrapping import ControllableFeatureWrapping, Scalar
from stablesr_jax.models.layers import Conv, Dense, Downsample, GroupNorm, Mask, ResidualBlock, Upsample, group_norm

Features = Float[Array, "b h w c"]
Images = Float[Array, "b h w 3"]
# The height and width of each picture in its frame, in latent pixels; None: the frame's.
Sides = Int[Array, "b 2"] | None


def mask_of(sides: Sides, features: Features, factor: int) -> Mask:
  """Where pictures are in features that have `factor` pixels for each latent one."""
  if sides is None:
    return None
  rows, columns = (
    jnp.arange(size)[None] < factor * sides[:, axis, None] for axis, size in enumerate(features.shape[1:3])
  )
  return (rows[:, :, None] & columns[:, None, :])[..., None]


def residual_block(features: int, config: AutoencoderConfig, compute: ComputeConfig, name: str) -> ResidualBlock:
  """The autoencoder's kind of residual block."""
  block = nn.remat(ResidualBlock) if compute.remat else ResidualBlock
  return block(features, compute, epsilon=1e-6, groups=config.norm_groups, name=name)


class PixelAttention(nn.Module):
  """Self-attention over all pixels with a single head, added to its input."""

  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: Features, mask: Mask = None) -> Features:
    b, height, width, c = x.shape
    norm = group_norm(self.compute, groups=self.config.norm_groups, epsilon=1e-6, name="norm")
    h = norm(x, mask=mask).reshape(b, height * width, c)
    keys = None if mask is None else mask.reshape(b, height * width)
    project = lambda name: Dense(c, dtype=self.compute.jax_dtype, name=name)
    q, k, v = (project(name)(h)[:, :, None] for name in ("q", "k", "v"))
    return x + project("out")(attention(q, k, v, self.compute, keys=keys)[:, :, 0]).reshape(x.shape)


class Middle(nn.Module):
  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(self, h: Features, mask: Mask = None) -> Features:
    h = residual_block(h.shape[-1], self.config, self.compute, name="residual_0")(h, mask=mask)
    if self.config.attention:
      h = PixelAttention(self.config, self.compute, name="attention")(h, mask)
    return residual_block(h.shape[-1], self.config, self.compute, name="residual_1")(h, mask=mask)


class Encoder(nn.Module):
  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(
    self, image: Images, sides: Sides = None
  ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
    c, compute = self.config, self.compute
    last = len(c.channel_multipliers) - 1
    mask = mask_of(sides, image, c.downsampling)
    h = Conv(c.channels, compute, name="conv_in")(image, mask)
    features = []
    for level, multiplier in enumerate(c.channel_multipliers):
      mask = mask_of(sides, h, 2 ** (last - level))
      for i in range(c.blocks_per_level):
        h = residual_block(c.channels * multiplier, c, compute, name=f"down_{level}_{i}")(h, mask=mask)
      if 0 < level < last:
        features.append(h)
      if level < last:
        h = Downsample(symmetric=False, compute=compute, name=f"downsample_{level}")(h, mask)
    h = Middle(c, compute, name="middle")(h, mask)
    h = nn.silu(group_norm(compute, groups=c.norm_groups, epsilon=1e-6, name="norm_out")(h, mask=mask))
    h = Conv(2 * c.latent_channels, compute, name="conv_out")(h, mask)
    return Conv(2 * c.latent_channels, compute, size=1, name="quant")(h), features


class Decoder(nn.Module):
  config: AutoencoderConfig
  compute: ComputeConfig

  @nn.compact
  def __call__(
    self,
    z: Features,
    features: Sequence[Float[Array, "b _ _ _"]] | None,
    fidelity_weight: Scalar,
    sides: Sides = None,
  ) -> Float[Array, "b h2 w2 3"]:
    c, compute = self.config, self.compute
    last = len(c.channel_multipliers) - 1
    mask = mask_of(sides, z, 1)
    h = Conv(c.latent_channels, compute, size=1, name="post_quant")(z)
    h = Conv(c.channels * c.channel_multipliers[-1], compute, name="conv_in")(h, mask)
    h = Middle(c, compute, name="middle")(h, mask)
    for level in reversed(range(last + 1)):
      mask = mask_of(sides, h, 2 ** (last - level))
      for i in range(c.blocks_per_level + 1):
        width = c.channels * c.channel_multipliers[level]
        h = residual_block(width, c, compute, name=f"up_{level}_{i}")(h, mask=mask)
      if c.cfw and features is not None and 0 < level < last:
        wrap = ControllableFeatureWrapping(c.cfw_growth, c.cfw_blocks, compute, c.norm_groups, name=f"cfw_{level}")
        h = wrap(features[level - 1], h, fidelity_weight, mask)
      if level:
        h = Upsample(compute, name=f"upsample_{level}")(h, mask)
    # The last stage is float32: it writes the pixels.
    h = nn.silu(GroupNorm(c.norm_groups, epsilon=1e-6, dtype=jnp.float32, name="norm_out")(h, mask=mask))
    return Conv(3, dataclasses.replace(compute, dtype="float32"), name="conv_out")(h, mask)


class Autoencoder(nn.Module):
  """Images (B, H, W, 3) in [-1, 1] <-> latents (B, H/f, W/f, 4), f = `config.downsampling` (8).

  Latents here are unscaled: the diffusion's are `config.scale_factor` times a posterior's sample.
  """

  config: AutoencoderConfig
  compute: ComputeConfig = ComputeConfig()

  def setup(self):
    self.encoder = Encoder(self.config, self.compute)
    self.decoder = Decoder(self.config, self.compute)

  def encode(
    self, image: Images, sides: Sides = None
  ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
    """The posterior of an image and the features that CFW wraps.

    Args:
      image: Images in [-1, 1], sides divisible by f.
      sides: How much of each frame is its image, from the top left, in latent pixels. The result there is that of the
        image alone; elsewhere it has no meaning.

    Returns:
      moments: Mean and log variance of the latent, float32 (see `posterior`).
      features: The encoder's features at 1/2, 1/4, ... of the image (the first and last scales left out).
    """
    moments, features = self.encoder(image, sides)
    return moments.astype(jnp.float32), features

  def decode(
    self,
    z: Features,
    features: Sequence[Float[Array, "b _ _ _"]] | None = None,
    fidelity_weight: Scalar = 0.0,
    sides: Sides = None,
  ) -> Float[Array, "b h2 w2 3"]:
    """Images of latents, float32, about [-1, 1], not clipped.

    Args:
      z: The latents, unscaled.
      features: The features from `encode` of the LR image enlarged to the output's size; None decodes without CFW.
      fidelity_weight: The w of CFW in [0, 1]; may be traced.
      sides: As in `encode`.
    """
    return self.decoder(z, features, fidelity_weight, sides)

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
