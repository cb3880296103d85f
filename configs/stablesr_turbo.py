"""StableSR Turbo: 4 steps. No training is needed: the 512 model's encoder and SFT work on SD-Turbo's UNet.

    python convert_weights.py --input stablesr_turbo.ckpt vqgan_cfw_00011.ckpt --output models/stablesr_turbo
    python infer.py --model models/stablesr_turbo --input photo.jpg --output restored.png

This recipe is for training them further on SD-Turbo (the paper does not), starting from that model:

    python train.py --config configs/stablesr_turbo.py --workdir runs/stablesr_turbo

Hardware: as stablesr_512.
"""

import dataclasses

from configs import stablesr_512
from stablesr_jax.config import SamplingConfig
from stablesr_jax.training.config import TrainConfig


def get_config() -> TrainConfig:
  base = stablesr_512.get_config()
  assert base.validation is not None
  return dataclasses.replace(
    base,
    model_path="models/stablesr_turbo",
    sampling=SamplingConfig(steps=4),
    steps=2_000,
    validation=dataclasses.replace(base.validation, sampling=SamplingConfig(steps=4)),
  )
