"""The embedded model's prior, the second of its four stages: plain latent diffusion with the null prompt.

    python train.py --config configs/tiny_prior.py --workdir runs/tiny_prior

Any machine: 2 CPU cores and 4 GB of memory. Stands in for the paper's Stable Diffusion, at a hundredth of its size.
"""

import dataclasses

from configs import tiny_autoencoder
from stablesr_jax.config import SamplingConfig
from stablesr_jax.data import DataConfig
from stablesr_jax.training.config import PriorStage, TrainConfig, ValidationConfig


def get_config() -> TrainConfig:
  base = tiny_autoencoder.get_config()
  return dataclasses.replace(
    base,
    stage=PriorStage(),
    model_path="runs/tiny_autoencoder/model",
    # Soft photographs, too: a model that has seen crisp ones alone puts a grain on them.
    data=dataclasses.replace(base.data, crop_size=128, scale_range=(0.5, 1.75)),
    steps=4_200,
    optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3),
    validation=ValidationConfig(
      DataConfig(tiny_autoencoder.VALIDATION, crop_size=128), images=6, every=500, sampling=SamplingConfig(steps=20)
    ),
  )
