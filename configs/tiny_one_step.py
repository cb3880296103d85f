"""The embedded model made to need a single evaluation: the whole of it trained end to end, in pixels.

    python examples/training_photographs.py --help     # makes photos/
    python train.py --config configs/tiny_one_step.py --workdir runs/tiny_one_step

Any machine: 2 CPU cores and 4 GB of memory. Not in the paper, whose restorer is trained on latents, takes 200 steps,
and leads back to sharpened photographs; this one leads back to the photographs themselves. L1 alone: the perceptual
loss (`--stage.perceptual-weight`, `--stage.lpips`) is for a run that goes on from this one's model: MODEL_CARD.md has
the lines that made the embedded model.

Time and result: 2.3 crops of 128 a second. 761 steps of 4 of them: 0.46 dB above bicubic enlargement on eight held-out
photographs. Never run to the end.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import DegradationSettings, SharpenSettings
from stablesr_jax.training.config import OneStepStage, OptimizerConfig, TrainConfig, ValidationConfig

TRAIN = (SourceConfig("packed", ("photos/tiles_train.array_record",)),)
VALIDATION = (SourceConfig("packed", ("photos/tiles_validation.array_record",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=OneStepStage(
      degradation=DegradationSettings(sharpen=SharpenSettings(target=False)),
      trained="all",
      perceptual_weight=0.0,
      adversarial_weight=0.0,
    ),
    model=sizes.tiny(),
    model_path="runs/tiny_cfw/model",
    sampling=SamplingConfig(
      steps=1,
      start_step=250,
      start_noise=0.0,
      fidelity_weight=1.0,
      color_fix="none",
      tile_size=72,
      tile_overlap=16,
    ),
    # Soft photographs, too: a model that has seen crisp ones alone puts a grain on them.
    data=DataConfig(TRAIN, crop_size=192, scale_range=(0.5, 1.75)),
    steps=20_000,
    batch_size=4,
    optimizer=OptimizerConfig(
      learning_rate=3e-4,
      schedule="constant",
      warmup_steps=50,
      betas=(0.9, 0.95),
      weight_decay=0.0,
      clip_norm=1.0,
      ema_decay=0.999,
    ),
    compute=ComputeConfig(),
    log_every=20,
    checkpoint_every=100,
    validation=ValidationConfig(DataConfig(VALIDATION, crop_size=256, flips=False), images=6, every=500),
  )
