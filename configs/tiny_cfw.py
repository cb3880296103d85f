"""The embedded model's CFW, the last of its four stages (the paper's second); its result is the embedded model.

    python train.py --config configs/tiny_cfw.py --workdir runs/tiny_cfw

Any machine: 2 CPU cores and 4 GB of memory. As in the paper but for the size, and with L1 alone: w = 1 is to be
faithful (and LPIPS's weights are not free to ship).
"""

import dataclasses

from configs import tiny_cfw_data
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.training.config import CfwStage, TrainConfig, ValidationConfig


def get_config() -> TrainConfig:
  base = tiny_cfw_data.get_config()
  data = DataConfig((SourceConfig("cfw_set", ("runs/tiny_cfw_data",)),), crop_size=256)
  return dataclasses.replace(
    base,
    stage=CfwStage(perceptual_weight=0.0, adversarial_weight=0.0),
    data=data,
    steps=2_800,
    batch_size=2,
    optimizer=dataclasses.replace(base.optimizer, learning_rate=7e-4),
    seed=0,
    validation=ValidationConfig(data, images=6, every=700),
  )
