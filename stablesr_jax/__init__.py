"""StableSR in JAX/Flax: real-world image super-resolution with a frozen Stable Diffusion prior."""

from typing import TYPE_CHECKING

from stablesr_jax.config import ComputeConfig, ModelConfig, SamplingConfig

if TYPE_CHECKING:
  from stablesr_jax.inference.pipeline import StableSR

__version__ = "0.2.0"

__all__ = ["ComputeConfig", "ModelConfig", "SamplingConfig", "StableSR", "__version__"]


def __getattr__(name: str):
  """Imports the pipeline, and with it JAX's whole stack, when it is first asked for: `--help` should answer at once."""
  if name == "StableSR":
    from stablesr_jax.inference.pipeline import StableSR

    return StableSR
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
