"""StableSR 512 made to need a single evaluation: time-aware encoder, SFT and CFW, trained end to end in pixels.

    python convert_weights.py --input vgg16-397923af.pth vgg.pth --output models/lpips
    python train.py --config configs/stablesr_512_one_step.py --workdir runs/stablesr_512_one_step

Hardware: an update is 32 samples, each of which goes through encoder, UNet and decoder and back; not yet run at this
size. Not in the paper: its restorer is trained on latents and takes 200 steps. The prior and the autoencoder stay
frozen. Train without LPIPS by `--stage.perceptual-weight 0`.
"""

import dataclasses

from configs import stablesr_512
from stablesr_jax.config import SamplingConfig
from stablesr_jax.training.config import OneStepStage, OptimizerConfig, RestorerStage, TrainConfig


def get_config() -> TrainConfig:
  base = stablesr_512.get_config()
  assert isinstance(base.stage, RestorerStage)
  return dataclasses.replace(
    base,
    stage=OneStepStage(
      degradation=base.stage.degradation, trained="steering", lpips="models/lpips", adversarial_weight=0.025
    ),
    model_path="runs/cfw_512/model",
    # From there the LR latent is 0.82 of what it was.
    sampling=SamplingConfig(steps=1, start_step=250, start_noise=0.0, fidelity_weight=0.5),
    steps=20_000,
    batch_size=32,
    optimizer=OptimizerConfig(learning_rate=5e-5, betas=(0.5, 0.9), weight_decay=0.0, ema_decay=0.999),
  )
