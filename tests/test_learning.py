"""What a restorer learns by runs of train.py."""

import numpy as np
import pytest
from PIL import Image

from tests.training_place import ROOT, metrics


@pytest.mark.training
def test_a_restorer_learns_four_photographs_by_heart(place):
  photograph = Image.open(ROOT / "tests" / "photograph.png").convert("RGB")
  for number, (left, top) in enumerate([(0, 0), (64, 0), (0, 64), (64, 64)]):
    hr = photograph.crop((left, top, left + 64, top + 64))
    for name, image in (("hr", hr), ("lr", hr.resize((16, 16), Image.Resampling.BICUBIC))):
      (place.folder / "crops" / name).mkdir(parents=True, exist_ok=True)
      image.save(place.folder / "crops" / name / f"{number}.png")
  autoencoder = "learned(AutoencoderStage(kl_weight=1e-6, perceptual_weight=0.0, adversarial_weight=0.0)"
  place.run(autoencoder + ", steps=300, batch_size=4)", "runs/learned_autoencoder", optimize=True)
  restorer = "learned(RestorerStage(train_prior=True), model_path='runs/learned_autoencoder/model'"
  folder = place.run(restorer + ", steps=180, batch_size=8)", "runs/learned", optimize=True)
  loss = metrics(folder)  # of noise of variance 1
  assert loss[20] > 0.3 and np.mean([loss[step] for step in (140, 160, 180)]) < 0.06, loss
  bicubic, ours = (metrics(folder, f"validation/psnr/{name}")[180] for name in ("lr, bicubic", "ours"))
  assert ours > bicubic + 1.5
