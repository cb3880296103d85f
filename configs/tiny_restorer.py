"""The embedded model's time-aware encoder and SFT, the third of its four stages (the paper's first).

    python train.py --config configs/tiny_restorer.py --workdir runs/tiny_restorer

Any machine: 2 CPU cores and 4 GB of memory. As in the paper but for the size: crops of 128 in place of 512.

Time and result: 22 minutes for 1,000 steps on two CPU cores. The loss of the embedded model's ended at 0.40. On the
validation photographs, from 999 in 20 steps, it is at a PSNR of 25.7 dB where bicubic enlargement is at 27.7, and at
SSIM 0.745 where that is at 0.743.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import OptimizerConfig, RestorerStage, TrainConfig, ValidationConfig

TRAIN = (SourceConfig("packed", ("photos/tiles_train.array_record",)),)
VALIDATION = (SourceConfig("packed", ("photos/tiles_validation.array_record",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=RestorerStage(degradation=PRESETS["stablesr_512"]),
    model=sizes.tiny(),
    model_path="runs/tiny_prior/model",
    # Few steps from a little noise: from more, a model of this size strays from the picture and gains no detail; from
    # less, noise and blocks stay. Its colours stray slowly over the picture, which AdaIN's means do not see.
    sampling=SamplingConfig(
      sampler="ddim",
      steps=4,
      start_step=120,
      fidelity_weight=0.05,
      color_fix="wavelet",
      tile_size=72,
      tile_overlap=16,
    ),
    # Soft photographs, too: a model that has seen crisp ones alone puts a grain on them.
    data=DataConfig(TRAIN, crop_size=128, scale_range=(0.5, 1.75)),
    steps=1_000,
    batch_size=16,
    optimizer=OptimizerConfig(
      learning_rate=1e-3,
      schedule="cosine",
      warmup_steps=50,
      betas=(0.9, 0.95),
      weight_decay=0.0,
      clip_norm=1.0,
      ema_decay=0.99,
    ),
    compute=ComputeConfig(),
    log_every=20,
    checkpoint_every=200,
    validation=ValidationConfig(
      DataConfig(VALIDATION, crop_size=128), images=6, every=500, sampling=SamplingConfig(steps=20)
    ),
  )
