"""StableSR in JAX/Flax: real-world image super-resolution with a frozen Stable Diffusion prior."""

from stablesr_jax.config import ComputeConfig, ModelConfig, SamplingConfig
from stablesr_jax.restorer import StableSR

__all__ = ["ComputeConfig", "ModelConfig", "SamplingConfig", "StableSR"]
