"""Spatial feature transform: how the time-aware encoder's maps steer the frozen UNet (3.1, eq. 1)."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from stablesr_jax.config import ComputeConfig, UNetConfig
from stablesr_jax.models.layers import Conv, group_norm


class SpatialFeatureTransform(nn.Module):
  """h' = norm(h) * (1 + gamma) + beta, with gamma and beta computed from the encoder's map of that scale."""

  hidden_channels: int
  compute: ComputeConfig = ComputeConfig()
  norm_groups: int = 32

  @nn.compact
  def __call__(self, h: Float[Array, "b h w c"], structure: Float[Array, "b h w s"]) -> Float[Array, "b h w c"]:
    shared = nn.relu(Conv(self.hidden_channels, self.compute, name="shared")(structure))
    gamma = Conv(h.shape[-1], self.compute, kernel_init=nn.initializers.zeros, name="gamma")(shared)
    beta = Conv(h.shape[-1], self.compute, kernel_init=nn.initializers.zeros, name="beta")(shared)
    return group_norm(self.compute, groups=self.norm_groups, name="norm")(h) * (1 + gamma) + beta


class Addition(nn.Module):
  """The paper's ablation of SFT: the encoder's map, brought to h's channels, is added."""

  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, h: Float[Array, "b h w c"], structure: Float[Array, "b h w s"]) -> Float[Array, "b h w c"]:
    return h + Conv(h.shape[-1], self.compute, kernel_init=nn.initializers.zeros, name="project")(structure)


def modulation(config: UNetConfig, compute: ComputeConfig) -> Callable[[], nn.Module] | None:
  """What makes the modulation of one residual block, or None for a plain Stable Diffusion UNet."""
  if config.conditioning == "sft":
    return lambda: SpatialFeatureTransform(config.sft_hidden_channels, compute, config.norm_groups, name="sft")
  if config.conditioning == "add":
    return lambda: Addition(compute, name="addition")
  return None
