"""Building blocks shared by the networks. Images and features are (B, H, W, C)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from stablesr_jax.config import ComputeConfig
from stablesr_jax.models import winograd
from stablesr_jax.models.attention import attention

# Where the pictures of a batch are in their frames. What lies outside changes nothing inside: to a convolution it is
# zero, as beyond a border, and statistics leave it out. None: everywhere.
Mask = Bool[Array, "b h w 1"] | None


def timestep_embedding(t: Shaped[Array, " b"], dim: int, max_period: float = 10000.0) -> Float[Array, "b {dim}"]:
  """Sinusoidal embedding of timesteps, cosines first.

  Args:
    t: The timesteps of the forward process, 0 to 999.
    dim: The width of the embedding, even.

  Returns:
    The embedding, float32.
  """
  frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
  angles = t.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Layer(nn.Module):
  """A module that takes its parameters as they are.

  Flax traces the initializer of each parameter that is there, to compare the shapes: half of the time that tracing a
  network takes. Here those of a model are compared once, when they are loaded.
  """

  def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **options: Any) -> Any:
    if self.has_variable("params", name):
      return self.get_variable("params", name)
    return super().param(name, init_fn, *init_args, **options)


class Dense(Layer, nn.Dense):
  """A linear layer of the last axis."""


class LayerNorm(Layer, nn.LayerNorm):
  """LayerNorm over the last axis."""


class TimeEmbedding(nn.Module):
  """Timesteps (B,) -> (B, 4 * channels): sinusoids, then two dense layers."""

  channels: int
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, t: Shaped[Array, " b"]) -> Float[Array, "b d"]:
    dtype = self.compute.jax_dtype
    h = Dense(4 * self.channels, dtype=dtype, name="dense1")(timestep_embedding(t, self.channels))
    return Dense(4 * self.channels, dtype=dtype, name="dense2")(nn.silu(h))


class Conv(Layer):
  """A convolution with PyTorch's symmetric padding, after nearest-neighbour upsampling by 2 if `upsample`.

  Parameters that `winograd.prepare` made have its filters in place of its kernel.

  Attributes:
    features: The number of output channels.
    size: The sides of the kernel, odd.
    kernel_init: The initializer of the kernel (size, size, C, features).
  """

  features: int
  compute: ComputeConfig = ComputeConfig()
  size: int = 3
  stride: int = 1
  upsample: bool = False
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], mask: Mask = None) -> Float[Array, "b h2 w2 d"]:
    x = within(mask, x)
    if self.has_variable("params", "filters"):
      convolve = winograd.convolve_upsampled if self.upsample else winograd.convolve
      y = convolve(x, self.get_variable("params", "filters"))
    else:
      y = self._direct(x)
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return y + bias.astype(y.dtype)[None, None, None]

  def _direct(self, x: jax.Array) -> jax.Array:
    kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
    x, kernel = (a.astype(self.compute.jax_dtype) for a in (x, kernel))
    pad = (self.size // 2, self.size // 2)
    return jax.lax.conv_general_dilated(
      upsample(x) if self.upsample else x,
      kernel,
      (self.stride, self.stride),
      (pad, pad),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def within(mask: Mask, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
  """Features that are zero outside the mask."""
  return x if mask is None else jnp.where(mask, x, 0)


class GroupNorm(Layer, nn.GroupNorm):
  """GroupNorm whose statistics are those of the mask's pixels; float32 whatever the compute dtype."""

  def __call__(self, x: Float[Array, "b *s c"], *, mask: Mask = None) -> Float[Array, "b *s c"]:
    return super().__call__(x, mask=None if mask is None else jnp.broadcast_to(mask, x.shape))


def group_norm(compute: ComputeConfig, *, groups: int = 32, epsilon: float = 1e-5, **kwargs) -> GroupNorm:
  return GroupNorm(groups, epsilon=epsilon, dtype=compute.jax_dtype, **kwargs)


class ResidualBlock(nn.Module):
  """norm, silu, conv, (+ time), norm, silu, conv, (modulation), + skip.

  The same block serves the UNet, the time-aware encoder, the autoencoder and CFW.

  Attributes:
    features: The number of output channels.
    epsilon: The epsilon of its norms: 1e-5 in the diffusion networks, 1e-6 in the autoencoder.
    groups: The number of groups of its norms.
    modulate: Makes the module that is applied to the residual branch's output before the skip is added (3.1).
  """

  features: int
  compute: ComputeConfig = ComputeConfig()
  epsilon: float = 1e-5
  groups: int = 32
  modulate: Callable[[], nn.Module] | None = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b h w c"],
    time: Float[Array, "#b t"] | None = None,
    structure: Float[Array, "b h w s"] | None = None,
    mask: Mask = None,
  ) -> Float[Array, "b h w d"]:
    compute = self.compute
    h = nn.silu(group_norm(compute, groups=self.groups, epsilon=self.epsilon, name="norm1")(x, mask=mask))
    h = Conv(self.features, compute, name="conv1")(h, mask)
    if time is not None:
      h += Dense(self.features, dtype=compute.jax_dtype, name="time")(nn.silu(time))[:, None, None]
    h = nn.silu(group_norm(compute, groups=self.groups, epsilon=self.epsilon, name="norm2")(h, mask=mask))
    h = Conv(self.features, compute, kernel_init=nn.initializers.zeros, name="conv2")(h, mask)
    if self.modulate is not None:
      h = self.modulate()(h, structure)
    if x.shape[-1] != self.features:
      x = Conv(self.features, compute, size=1, name="skip")(x)
    return x + h


class Downsample(nn.Module):
  """Halves the resolution with a strided convolution. Networks name it "downsample_<level>", as `winograd` expects.

  Attributes:
    symmetric: Whether both sides are padded (UNet), or the bottom and right only (autoencoder).
  """

  symmetric: bool = True
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], mask: Mask = None) -> Float[Array, "b h2 w2 c"]:
    pad = (1, 1) if self.symmetric else (0, 1)
    conv = nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=(pad, pad), dtype=self.compute.jax_dtype, name="conv")
    return conv(within(mask, x))


class Upsample(nn.Module):
  """Doubles the resolution: nearest neighbour, then a convolution. Networks name it "upsample_<level>"."""

  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"], mask: Mask = None) -> Float[Array, "b 2*h 2*w c"]:
    return Conv(x.shape[-1], self.compute, upsample=True, name="conv")(x, mask)


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
  """Nearest-neighbour upsampling by 2."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class SelfAttentionBlock(nn.Module):
  """Plain self-attention over all pixels, added to its input, with one projection to q, k and v a head.

  The projection's columns are ordered (head, q/k/v, channel) as in the time-aware encoder's checkpoints.
  """

  heads: int
  compute: ComputeConfig = ComputeConfig()
  groups: int = 32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    b, height, width, c = x.shape
    h = group_norm(self.compute, groups=self.groups, name="norm")(x).reshape(b, height * width, c)
    qkv = Dense(3 * c, dtype=self.compute.jax_dtype, name="qkv")(h)
    q, k, v = jnp.split(qkv.reshape(b, height * width, self.heads, 3 * c // self.heads), 3, axis=-1)
    h = attention(q, k, v, self.compute).reshape(b, height * width, c)
    h = Dense(c, dtype=self.compute.jax_dtype, kernel_init=nn.initializers.zeros, name="out")(h)
    return x + h.reshape(x.shape)
