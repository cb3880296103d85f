"""The embedded model's prior, the second of its four stages: plain latent diffusion with the null prompt.

    python train.py --config configs/tiny_prior.py --workdir runs/tiny_prior

Any machine: 2 CPU cores and 4 GB of memory. Stands in for the paper's Stable Diffusion, at a hundredth of its size.

Time and result: about an hour for 4,200 steps on two CPU cores. The embedded model's had as many in four runs, 59
minutes in all; the loss of the last one ended at 0.41. It is judged by the restorer that is trained on it.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.training.config import OptimizerConfig, PriorStage, TrainConfig, ValidationConfig

TRAIN = (SourceConfig("packed", ("photos/tiles_train.array_record",)),)
VALIDATION = (SourceConfig("packed", ("photos/tiles_validation.array_record",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=PriorStage(),
    model=sizes.tiny(),
    model_path="runs/tiny_autoencoder/model",
    # Soft photographs, too: a model that has seen crisp ones alone puts a grain on them.
    data=DataConfig(TRAIN, crop_size=128, scale_range=(0.5, 1.75)),
    steps=4_200,
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
