"""StableSR for faces: the 512 model trained further on faces, with the degradation of face restoration.

    python train.py --config configs/stablesr_face.py --workdir runs/stablesr_face

Hardware: as stablesr_512. The paper fine-tunes on FFHQ; the degradation is described in
`stablesr_jax.degradation.PRESETS`, and differs from the published one in that no face is shrunk below 32 pixels.
"""

import dataclasses

from configs import stablesr_512
from stablesr_jax.data import SourceConfig
from stablesr_jax.degradation import PRESETS
from stablesr_jax.training.config import RestorerStage, TrainConfig


def get_config() -> TrainConfig:
  base = stablesr_512.get_config()
  return dataclasses.replace(
    base,
    stage=RestorerStage(degradation=PRESETS["face"]),
    model_path="runs/stablesr_512/model",
    data=dataclasses.replace(base.data, sources=(SourceConfig("folder", ("data/FFHQ",)),)),
    steps=5_000,
  )
