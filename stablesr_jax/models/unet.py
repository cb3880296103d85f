"""Stable Diffusion's denoising UNet with a modulation in every residual block."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from stablesr_jax.config import ComputeConfig, UNetConfig
from stablesr_jax.models.attention import attention
from stablesr_jax.models.layers import (
  Conv,
  Dense,
  Downsample,
  LayerNorm,
  ResidualBlock,
  TimeEmbedding,
  Upsample,
  group_norm,
)
from stablesr_jax.models.sft import modulation

# A CPU takes a feed-forward layer this many tokens at a time: widened features of more do not stay in its cache.
_CPU_TOKENS = 512

# Each (B or 1, 77, heads, head_channels), of several prompts with an axis in front.
KeysValues = tuple[Float[Array, "... m _ _"], Float[Array, "... m _ _"]]
Tokens = Float[Array, "b n c"]
Features = Float[Array, "b h w c"]


class SelfAttention(nn.Module):
  head_channels: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    b, n, c = x.shape
    project = lambda name: Dense(c, use_bias=False, dtype=self.compute.jax_dtype, name=name)
    q, k, v = (project(name)(x).reshape(b, n, -1, self.head_channels) for name in ("q", "k", "v"))
    h = attention(q, k, v, self.compute).reshape(b, n, c)
    return Dense(c, dtype=self.compute.jax_dtype, name="out")(h)


class CrossAttention(nn.Module):
  """Attention to the prompt, in two halves: a fixed prompt's keys and values are computed once for a whole run."""

  channels: int
  head_channels: int
  compute: ComputeConfig

  def setup(self):
    project = lambda: Dense(self.channels, use_bias=False, dtype=self.compute.jax_dtype)
    self.q, self.k, self.v = project(), project(), project()
    self.out = Dense(self.channels, dtype=self.compute.jax_dtype)

  def project_context(self, context: Float[Array, "b m c"]) -> KeysValues:
    """The keys and values of prompts' embeddings."""
    shape = (*context.shape[:2], -1, self.head_channels)
    return self.k(context).reshape(shape), self.v(context).reshape(shape)

  def __call__(self, x: Tokens, context: KeysValues) -> Tokens:
    q = self.q(x).reshape(*x.shape[:2], -1, self.head_channels)
    return self.out(attention(q, *context, self.compute).reshape(x.shape))


class FeedForward(nn.Module):
  """GEGLU: half of the widened features gates the other half."""

  channels: int
  compute: ComputeConfig

  def setup(self):
    self.widen = Dense(8 * self.channels, dtype=self.compute.jax_dtype)
    self.out = Dense(self.channels, dtype=self.compute.jax_dtype)

  def __call__(self, x: Tokens) -> Tokens:
    n = x.shape[1]
    if self.compute.platform == "cpu" and n > _CPU_TOKENS and n % _CPU_TOKENS == 0:
      return jnp.concatenate([self._tokens(part) for part in jnp.split(x, n // _CPU_TOKENS, axis=1)], axis=1)
    return self._tokens(x)

  def _tokens(self, x: Tokens) -> Tokens:
    h, gate = jnp.split(self.widen(x), 2, axis=-1)
    return self.out(h * nn.gelu(gate, approximate=False))


class SpatialTransformer(nn.Module):
  """Self-attention over pixels, attention to the prompt and a feed-forward layer, each added to its input."""

  channels: int
  head_channels: int
  compute: ComputeConfig
  norm_groups: int = 32

  def setup(self):
    layer_norm = lambda: LayerNorm(epsilon=1e-5, dtype=self.compute.jax_dtype)
    self.norm = group_norm(self.compute, groups=self.norm_groups, epsilon=1e-6)
    self.proj_in = Dense(self.channels, dtype=self.compute.jax_dtype)
    self.norm1, self.norm2, self.norm3 = layer_norm(), layer_norm(), layer_norm()
    self.self_attention = SelfAttention(self.head_channels, self.compute)
    self.cross_attention = CrossAttention(self.channels, self.head_channels, self.compute)
    self.feed_forward = FeedForward(self.channels, self.compute)
    self.proj_out = Dense(self.channels, dtype=self.compute.jax_dtype, kernel_init=nn.initializers.zeros)

  def __call__(self, x: Features, context: KeysValues) -> Features:
    h = self.proj_in(self.norm(x).reshape(x.shape[0], -1, x.shape[-1]))
    h += self.self_attention(self.norm1(h))
    h += self.cross_attention(self.norm2(h), context)
    h += self.feed_forward(self.norm3(h))
    return x + self.proj_out(h).reshape(x.shape)


class UNetBlock(nn.Module):
  """A residual block, modulated, and where its level has one, a transformer block."""

  features: int
  has_attention: bool
  config: UNetConfig
  compute: ComputeConfig

  def setup(self):
    c, compute = self.config, self.compute
    self.residual = ResidualBlock(self.features, compute, groups=c.norm_groups, modulate=modulation(c, compute))
    if self.has_attention:
      self.transformer = SpatialTransformer(self.features, c.head_channels, compute, c.norm_groups)

  def project_context(self, context: Float[Array, "b m c"]) -> KeysValues | None:
    return self.transformer.cross_attention.project_context(context) if self.has_attention else None

  def __call__(
    self,
    x: Features,
    time: Float[Array, "#b t"],
    context: KeysValues | None,
    structure: Float[Array, "b h w s"] | None,
  ) -> Float[Array, "b h w d"]:
    h = self.residual(x, time, structure)
    return h if context is None else self.transformer(h, context)


class UNet(nn.Module):
  """Predicts the noise (or v) in a latent.

  `__call__` does all in one; a sampler calls `embed_time` and `project_context` once for the whole run
  and `denoise` at every step.
  """

  config: UNetConfig
  compute: ComputeConfig = ComputeConfig()

  def setup(self):
    c, compute = self.config, self.compute
    widths = [c.channels * m for m in c.channel_multipliers]
    # Only the call is recomputed: the prompt's keys and values are small.
    unet_block = nn.remat(UNetBlock, methods=["__call__"]) if compute.remat else UNetBlock
    block = lambda level, attend: unet_block(widths[level], attend, c, compute)
    levels = range(len(widths))
    self.time_embedding = TimeEmbedding(c.channels, compute)
    self.conv_in = Conv(c.channels, compute)
    self.down = [[block(i, i in c.attention_levels) for _ in range(c.blocks_per_level)] for i in levels]
    self.downsample = [Downsample(compute=compute) for _ in levels[:-1]]
    self.middle = [block(levels[-1], True), block(levels[-1], False)]
    self.up = [[block(i, i in c.attention_levels) for _ in range(c.blocks_per_level + 1)] for i in levels]
    self.upsample = [Upsample(compute) for _ in levels[1:]]  # upsample[i] leads from level i + 1 to level i
    self.norm_out = group_norm(compute, groups=c.norm_groups)
    self.conv_out = Conv(c.latent_channels, compute, kernel_init=nn.initializers.zeros)

  def _blocks(self) -> list[UNetBlock]:
    """All blocks in the order of computation."""
    flat = lambda groups: [block for group in groups for block in group]
    return [*flat(self.down), *self.middle, *flat(reversed(self.up))]

  def embed_time(self, t: Shaped[Array, " b"]) -> Float[Array, "b t"]:
    """Timesteps (B,) -> (B, 4 * channels)."""
    return self.time_embedding(t)

  def project_context(self, context: Float[Array, "b m c"]) -> list[KeysValues | None]:
    """The keys and values of the prompts' embeddings for each block, None where it has no attention."""
    return [block.project_context(context) for block in self._blocks()]

  def denoise(
    self,
    x: Features,
    time: Float[Array, "#b t"],
    context: Sequence[KeysValues | None],
    structure: Sequence[Float[Array, "b _ _ s"]] | None,
  ) -> Features:
    """One evaluation.

    Args:
      x: Noisy latents, their sides divisible by 2 ** (levels - 1).
      time: The embedding of their timesteps, from `embed_time`.
      context: The prompts' keys and values, from `project_context`.
      structure: The time-aware encoder's maps, (b, h / 2**i, w / 2**i, s) for level i; None without conditioning.

    Returns:
      The prediction, float32.
    """
    maps = structure if structure is not None else [None] * len(self.down)
    keys_values = iter(context)
    h = self.conv_in(x)
    skips = [h]
    for level, blocks in enumerate(self.down):
      for block in blocks:
        h = block(h, time, next(keys_values), maps[level])
        skips.append(h)
      if level < len(self.down) - 1:
        h = self.downsample[level](h)
        skips.append(h)
    for block in self.middle:
      h = block(h, time, next(keys_values), maps[-1])
    for level in reversed(range(len(self.up))):
      for block in self.up[level]:
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), time, next(keys_values), maps[level])
      if level:
        h = self.upsample[level - 1](h)
    return self.conv_out(nn.silu(self.norm_out(h))).astype(jnp.float32)

  def __call__(
    self,
    x: Features,
    t: Shaped[Array, "#b"],
    context: Float[Array, "#b n d"],
    structure: Sequence[Float[Array, "b _ _ s"]] | None = None,
  ) -> Features:
    """Noisy latents, their timesteps, the prompts' embeddings, and `denoise`'s structure -> the prediction, float32."""
    return self.denoise(x, self.embed_time(t), self.project_context(context), structure)
