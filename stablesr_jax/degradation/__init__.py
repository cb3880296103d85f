"""Training pairs: the degradation of Real-ESRGAN, drawn anew for every image on the device that trains."""

from stablesr_jax.degradation.pairs import degrade, degrade_pairs, sharpen
from stablesr_jax.degradation.settings import PRESETS, DegradationSettings, SharpenSettings, StageSettings

__all__ = [
  "PRESETS",
  "DegradationSettings",
  "SharpenSettings",
  "StageSettings",
  "degrade",
  "degrade_pairs",
  "sharpen",
]
