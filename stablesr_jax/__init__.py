"""StableSR in JAX/Flax: real-world image super-resolution with a frozen Stable Diffusion prior."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from stablesr_jax.config import ComputeConfig, ModelConfig, SamplingConfig
  from stablesr_jax.inference.output_size import OutputSize
  from stablesr_jax.inference.pipeline import StableSR

__version__ = "0.2.0"

__all__ = ["ComputeConfig", "ModelConfig", "OutputSize", "SamplingConfig", "StableSR", "__version__"]


_MODULES = {
  "ComputeConfig": "stablesr_jax.config",
  "ModelConfig": "stablesr_jax.config",
  "OutputSize": "stablesr_jax.inference.output_size",
  "SamplingConfig": "stablesr_jax.config",
  "StableSR": "stablesr_jax.inference.pipeline",
}


def __getattr__(name: str) -> object:
  """Imports what is asked for when it is: with the pipeline comes JAX's whole stack, and `--help` answers at once."""
  if name in _MODULES:
    return getattr(importlib.import_module(_MODULES[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
