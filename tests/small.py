"""The architecture of the small reference answers."""

from stablesr_jax.config import AutoencoderConfig, ModelConfig, TimeAwareEncoderConfig, UNetConfig


def small() -> ModelConfig:
  """The published architecture at small width, as the reference answers have it (no text tower)."""
  return ModelConfig(
    unet=UNetConfig(channels=32, head_channels=16, context_dim=64, structure_channels=32),
    time_aware_encoder=TimeAwareEncoderConfig(channels=32, out_channels=32),
    autoencoder=AutoencoderConfig(channels=32),
    text_encoder=None,
  )
