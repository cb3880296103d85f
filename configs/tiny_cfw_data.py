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
  base = tiny_restorer.get_config()
  return dataclasses.replace(
    base,
    stage=CfwDataStage(degradation=degradation, count=1_024),
    model_path="runs/tiny_restorer/model",
    # The autoencoder's norms look at the whole picture: in small crops they see other means than in a photograph, and
    # what is learned there lets colours stray. Soft photographs, since CFW else adds a grain to them.
    data=dataclasses.replace(base.data, crop_size=256, scale_range=(0.5, 2.5)),
    batch_size=8,
    seed=1,
  )
