"""The set that the embedded model's CFW is trained on.

    python train.py --config configs/tiny_cfw_data.py --workdir runs/tiny_cfw_data

Any machine: 2 CPU cores and 4 GB of memory. The paper makes 100,000 samples of 512x512 with 200 steps, and its CFW
leads back to sharpened photographs as the restorer does; here w = 1 is to be faithful to the photographs as they are.
"""

import dataclasses

from configs import tiny_restorer
from stablesr_jax.degradation import PRESETS, SharpenSettings
from stablesr_jax.training.config import CfwDataStage, TrainConfig


def get_config() -> TrainConfig:
  degradation = dataclasses.replace(PRESETS["stablesr_512"], sharpen=SharpenSettings(target=False))
  return dataclasses.replace(
    tiny_restorer.get_config(),
    stage=CfwDataStage(degradation=degradation, count=2_560),
    model_path="runs/tiny_restorer/model",
    batch_size=32,
    seed=1,
  )
