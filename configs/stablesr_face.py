"""StableSR for faces: the 512 model trained further on faces, with the degradation of face restoration.

    python train.py --config configs/stablesr_face.py --workdir runs/stablesr_face

Hardware: as stablesr_512. The published model is fine-tuned on FFHQ; the degradation is described in
`stablesr_jax.degradation.PRESETS`, and differs from the published one in that no face is shrunk below 32 pixels.

Time and result: never run at full size; by arithmetic about 3 hours of one H100 (5,000 of the 16,500 steps of
stablesr_512). The paper has no figures for a face model.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import OptimizerConfig, RestorerStage, TrainConfig, ValidationConfig

SOURCES = (SourceConfig("folder", ("data/FFHQ",)),)
VALIDATION = (SourceConfig("folder", ("data/validation",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=RestorerStage(degradation=PRESETS["face"]),
    model=sizes.stablesr_512(),
    model_path="runs/stablesr_512/model",
    data=DataConfig(SOURCES, crop_size=512, workers=16),
    steps=5_000,
    batch_size=192,
    optimizer=OptimizerConfig(learning_rate=5e-5, ema_decay=0.9999),
    compute=ComputeConfig(dtype="bfloat16", remat=True),
    checkpoint_every=500,
    keep_every=5_000,
    validation=ValidationConfig(
      DataConfig(VALIDATION, crop_size=512, flips=False), images=8, every=1_000, sampling=SamplingConfig(steps=50)
    ),
  )
