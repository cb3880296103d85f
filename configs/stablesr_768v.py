"""StableSR 768v: the first stage on Stable Diffusion 2.1 (v-prediction), for tiles of 768 pixels.

    python convert_weights.py --input v2-1_768-ema-pruned.safetensors --output models/sd21_768v
    python train.py --config configs/stablesr_768v.py --workdir runs/stablesr_768v

Hardware: as stablesr_512, with 2.25 times the activations of a sample. Differs from it as the published model does:
v-prediction, crops of 768, a degradation without sharpening and without clean images. No CFW is trained for it.

Time and result: never run at full size; a sample has 2.25 times the pixels of stablesr_512, which by arithmetic takes
about 10 hours of one H100. The paper has no figures for a 768 model.
"""

from stablesr_jax import config as sizes
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import OptimizerConfig, RestorerStage, TrainConfig, ValidationConfig

SOURCES = (SourceConfig("folder", ("data/DIV2K", "data/DIV8K", "data/Flickr2K", "data/OST", "data/FFHQ_5k")),)
VALIDATION = (SourceConfig("folder", ("data/validation",)),)


def get_config() -> TrainConfig:
  return TrainConfig(
    stage=RestorerStage(degradation=PRESETS["stablesr_768v"]),
    model=sizes.stablesr_768v(),
    model_path="models/sd21_768v",
    sampling=SamplingConfig(tile_size=96, fidelity_weight=0.0),
    data=DataConfig(SOURCES, crop_size=768, workers=16),
    steps=16_500,
    batch_size=192,
    optimizer=OptimizerConfig(learning_rate=5e-5, ema_decay=0.9999),
    compute=ComputeConfig(dtype="bfloat16", remat=True),
    checkpoint_every=500,
    keep_every=5_000,
    validation=ValidationConfig(
      DataConfig(VALIDATION, crop_size=768, flips=False), images=8, every=1_000, sampling=SamplingConfig(steps=50)
    ),
  )
