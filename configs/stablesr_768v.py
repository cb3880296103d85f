"""StableSR 768v: the first stage on Stable Diffusion 2.1 (v-prediction), for tiles of 768 pixels.

    python convert_weights.py --input v2-1_768-ema-pruned.safetensors --output models/sd21_768v
    python train.py --config configs/stablesr_768v.py --workdir runs/stablesr_768v

Hardware: as stablesr_512, with 2.25 times the activations of a sample. Differs from it as the published model does:
v-prediction, crops of 768, a degradation without sharpening and without clean images. No CFW is trained for it.
"""

import dataclasses

from configs import stablesr_512
from stablesr_jax import config as sizes
from stablesr_jax.config import SamplingConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import RestorerStage, TrainConfig


def get_config() -> TrainConfig:
  base = stablesr_512.get_config()
  assert base.validation is not None
  return dataclasses.replace(
    base,
    stage=RestorerStage(degradation=PRESETS["stablesr_768v"]),
    model=sizes.stablesr_768v(),
    model_path="models/sd21_768v",
    sampling=SamplingConfig(tile_size=96, fidelity_weight=0.0),
    data=dataclasses.replace(base.data, crop_size=768),
    validation=dataclasses.replace(base.validation, data=dataclasses.replace(base.validation.data, crop_size=768)),
  )
