"""Controllable feature wrapping for the 512 model, the paper's second stage; all else is frozen.

    python convert_weights.py --input vgg16-397923af.pth vgg.pth --output models/lpips
    python train.py --config configs/cfw_data_512.py --workdir runs/cfw_data_512
    python train.py --config configs/cfw_512.py --workdir runs/cfw_512

Hardware: see docs/training.md for memory by batch; 8 samples are an update. As in the paper, except: bfloat16
computation, a discriminator with GroupNorm, the adaptive weight measured at the image. Train without LPIPS by
`--stage.perceptual-weight 0`.
"""

import dataclasses

from configs import cfw_data_512
from stablesr_jax.config import ComputeConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.training.config import CfwStage, OptimizerConfig, TrainConfig, ValidationConfig


def get_config() -> TrainConfig:
  data = DataConfig((SourceConfig("cfw_set", ("runs/cfw_data_512",)),), crop_size=512, workers=4)
  return dataclasses.replace(
    cfw_data_512.get_config(),
    stage=CfwStage(perceptual_weight=1.0, lpips="models/lpips", adversarial_weight=0.025, adversarial_start=501),
    data=data,
    steps=100_000,
    batch_size=8,
    seed=0,
    optimizer=OptimizerConfig(learning_rate=5e-5, betas=(0.5, 0.9), weight_decay=0.0),
    compute=ComputeConfig(dtype="bfloat16", remat=True),
    validation=ValidationConfig(dataclasses.replace(data, workers=0), images=8, every=5_000),
  )
