"""Building blocks shared by the networks. Images and features are (B, H, W, C)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesr_jax.config import ComputeConfig
from stablesr_jax.models import winograd
from stablesr_jax.models.attention import attention


def timestep_embedding(t: jax.Array, dim: int, max_period: float = 10000.0) -> jax.Array:
  """Sinusoidal embedding of timesteps, cosines first.

  Args:
    t: (B,) timesteps of the forward process, 0 to 999.
    dim: width of the embedding, even.

  Returns:
    (B, dim) float32.
  """
  frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
  angles = t.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
  """Timesteps (B,) -> (B, 4 * channels): sinusoids, then two dense layers."""

  channels: int
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, t: jax.Array) -> jax.Array:
    dtype = self.compute.jax_dtype
    h = nn.Dense(4 * self.channels, dtype=dtype, name="dense1")(timestep_embedding(t, self.channels))
    return nn.Dense(4 * self.channels, dtype=dtype, name="dense2")(nn.silu(h))


class Conv(nn.Conv):
  """A convolution, after nearest-neighbour enlargement by 2 if `enlarge`.

  Applied with a mutable collection "prepared", it puts its transformed filters there if they make it faster (see
  `winograd`); applied with that collection, it uses them, and needs its kernel no more.
  """

  enlarge: bool = False

  def __call__(self, inputs: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, H', W', features)."""
    if self.has_variable("prepared", "filters"):
      convolve = winograd.convolve_enlarged if self.enlarge else winograd.convolve
      y = convolve(inputs, self.get_variable("prepared", "filters"))
      return y + self.get_variable("params", "bias")[None, None, None]
    x = double(inputs) if self.enlarge else inputs
    y = super().__call__(x)
    if self.is_mutable_collection("prepared") and not self.is_initializing():
      if self.kernel_size == (3, 3) and self.strides == (1, 1) and winograd.pays(x, y):
        kernel = self.get_variable("params", "kernel")
        self.put_variable("prepared", "filters", winograd.transform(kernel, enlarge=self.enlarge))
    return y


def conv(
  features: int, compute: ComputeConfig, *, size: int = 3, stride: int = 1, zero: bool = False, **kwargs
) -> Conv:
  """A convolution with PyTorch's symmetric padding; `zero` starts its kernel at zero."""
  if zero:
    kwargs["kernel_init"] = nn.initializers.zeros
  pad = size // 2
  return Conv(
    features,
    (size, size),
    (stride, stride),
    padding=((pad, pad), (pad, pad)),
    dtype=compute.jax_dtype,
    **kwargs,
  )


def group_norm(compute: ComputeConfig, *, groups: int = 32, epsilon: float = 1e-5, **kwargs) -> nn.GroupNorm:
  """GroupNorm; its statistics are float32 whatever the compute dtype."""
  return nn.GroupNorm(groups, epsilon=epsilon, dtype=compute.jax_dtype, **kwargs)


class ResidualBlock(nn.Module):
  """norm, silu, conv, (+ time), norm, silu, conv, (modulation), + skip.

  The same block serves the UNet, the time-aware encoder, the autoencoder and CFW.

  Attributes:
    features: output channels.
    epsilon: of its norms; 1e-5 in the diffusion networks, 1e-6 in the autoencoder.
    groups: of its norms.
    modulate: applied to the residual branch's output before the skip is added (3.1).
  """

  features: int
  compute: ComputeConfig = ComputeConfig()
  epsilon: float = 1e-5
  groups: int = 32
  modulate: Callable[[], nn.Module] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array | None = None, structure: jax.Array | None = None) -> jax.Array:
    """x (B, H, W, C), time (B or 1, T) or None, structure (B, H, W, S) or None -> (B, H, W, features)."""
    compute = self.compute
    h = nn.silu(group_norm(compute, groups=self.groups, epsilon=self.epsilon, name="norm1")(x))
    h = conv(self.features, compute, name="conv1")(h)
    if time is not None:
      h += nn.Dense(self.features, dtype=compute.jax_dtype, name="time")(nn.silu(time))[:, None, None]
    h = nn.silu(group_norm(compute, groups=self.groups, epsilon=self.epsilon, name="norm2")(h))
    h = conv(self.features, compute, zero=True, name="conv2")(h)
    if self.modulate is not None:
      h = self.modulate()(h, structure)
    if x.shape[-1] != self.features:
      x = conv(self.features, compute, size=1, name="skip")(x)
    return x + h


class Downsample(nn.Module):
  """Halves the resolution with a strided convolution.

  Attributes:
    symmetric: pad both sides (UNet) or the bottom and right only (autoencoder).
  """

  symmetric: bool = True
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pad = (1, 1) if self.symmetric else (0, 1)
    return nn.Conv(x.shape[-1], (3, 3), (2, 2), padding=(pad, pad), dtype=self.compute.jax_dtype, name="conv")(x)


class Upsample(nn.Module):
  """Doubles the resolution: nearest neighbour, then a convolution."""

  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return conv(x.shape[-1], self.compute, enlarge=True, name="conv")(x)


def double(x: jax.Array) -> jax.Array:
  """Nearest-neighbour enlargement by 2: (B, H, W, C) -> (B, 2H, 2W, C)."""
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
  def __call__(self, x: jax.Array) -> jax.Array:
    b, height, width, c = x.shape
    h = group_norm(self.compute, groups=self.groups, name="norm")(x).reshape(b, height * width, c)
    qkv = nn.Dense(3 * c, dtype=self.compute.jax_dtype, name="qkv")(h)
    q, k, v = jnp.split(qkv.reshape(b, height * width, self.heads, 3 * c // self.heads), 3, axis=-1)
    h = attention(q, k, v, self.compute).reshape(b, height * width, c)
    h = nn.Dense(c, dtype=self.compute.jax_dtype, kernel_init=nn.initializers.zeros, name="out")(h)
    return x + h.reshape(x.shape)
