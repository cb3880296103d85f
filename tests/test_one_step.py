"""The stage that trains a single evaluation end to end, at micro size."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stablesr_jax import StableSR
from stablesr_jax.checkpoints.store import load_params, read_manifest
from stablesr_jax.config import (
  AutoencoderConfig,
  ComputeConfig,
  DiffusionConfig,
  DiscriminatorConfig,
  SamplingConfig,
)
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.diffusion.objective import prediction_target
from stablesr_jax.diffusion.schedule import add_noise
from stablesr_jax.models.parameters import flat, is_cfw, is_modulation
from stablesr_jax.training.config import OneStepStage, OptimizerConfig, TrainConfig, ValidationConfig
from stablesr_jax.training.loop import train
from tests.micro import MODEL, photograph, write

PARTS = ("unet", "time_aware_encoder", "autoencoder")
ONE_STEP = SamplingConfig(
  steps=1, start_step=250, start_noise=0.0, fidelity_weight=0.5, color_fix="none", tile_size=16, tile_overlap=8
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  """Two steps from a random restorer on two pairs of pictures."""
  folder = tmp_path_factory.mktemp("one_step")
  for number in range(2):
    hr = Image.fromarray(np.roll(photograph(64, 64), 5 * number, axis=1))
    for name, image in (("hr", hr), ("lr", hr.resize((16, 16), Image.Resampling.BICUBIC))):
      (folder / name).mkdir(exist_ok=True)
      image.save(folder / name / f"{number}.png")
  data = DataConfig((SourceConfig("pairs", (str(folder / "hr"),), (str(folder / "lr"),)),), crop_size=64, prefetch=1)
  return TrainConfig(
    stage=OneStepStage(perceptual_weight=0.0, adversarial_start=0, discriminator=DiscriminatorConfig(4, 2)),
    data=data,
    model=MODEL,
    model_path=str(write(folder / "restorer")),
    sampling=ONE_STEP,
    steps=2,
    batch_size=2,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    compute=ComputeConfig(),
    log_every=1,
    checkpoint_every=1,
  )


def parameters(folder) -> dict[str, np.ndarray]:
  params = load_params(folder, read_manifest(folder), PARTS)
  return {f"{part}/{path}": np.asarray(leaf) for part in PARTS for path, leaf in flat(params[part]).items()}


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.training
def test_steering_leaves_prior_and_autoencoder_and_restores_in_one_step(base, tmp_path):
  teacher = dataclasses.replace(ONE_STEP, steps=2)
  stage = dataclasses.replace(base.stage, teacher_weight=0.5, teacher=teacher)
  validation = ValidationConfig(base.data, images=2, every=2)
  assert train(dataclasses.replace(base, stage=stage, validation=validation), tmp_path)
  before, after = parameters(base.model_path), parameters(tmp_path / "model")
  changed = {path for path in before if (before[path] != after[path]).any()}

  def is_steering(path: str) -> bool:
    part, _, rest = path.partition("/")
    return {"unet": is_modulation, "autoencoder": is_cfw}.get(part, lambda rest: True)(rest)

  assert changed and all(map(is_steering, changed))
  assert len(changed) > 0.8 * sum(map(is_steering, before))  # a norm before the last bias has no gradient
  first, *_ = lines(tmp_path)
  assert first["loss"] > first["l1"] and first["teacher"] > 0 and first["l1/w=1"] > 0 and first["discriminator"] > 0
  validated = lines(tmp_path)[-1]
  assert {f"validation/psnr/{name}" for name in ("w = 0", "w = 1", "ours")} <= validated.keys()

  model = StableSR.load(tmp_path / "model")
  assert model.manifest.sampling == ONE_STEP
  told = []
  restored = model.upscale(photograph(16, 16), progress=lambda done, steps: told.append((done, steps)))
  assert restored.shape == (64, 64, 3) and told == [(1, 1)]
  np.testing.assert_array_equal(restored, model.upscale(photograph(16, 16), seed=1))  # nothing is drawn


@pytest.mark.training
def test_all_trains_every_part(base, tmp_path):
  stage = dataclasses.replace(base.stage, trained="all", adversarial_weight=0.0)
  sampling = dataclasses.replace(ONE_STEP, fidelity_weight=1.0)
  assert train(dataclasses.replace(base, stage=stage, sampling=sampling, steps=1), tmp_path)
  before, after = parameters(base.model_path), parameters(tmp_path / "model")
  for part in ("encoder", "decoder"):
    assert any((before[path] != after[path]).any() for path in before if path.startswith(f"autoencoder/{part}"))
  assert any((before[p] != after[p]).any() for p in before if p.startswith("unet/") and not is_modulation(p))
  assert "l1/w=1" not in lines(tmp_path)[0]


def test_more_steps_or_no_cfw_are_refused(base, tmp_path):
  with pytest.raises(ValueError, match=r"sampling\.steps 2"):
    train(dataclasses.replace(base, sampling=dataclasses.replace(ONE_STEP, steps=2)), tmp_path)
  plain = dataclasses.replace(MODEL, autoencoder=AutoencoderConfig(cfw=False))
  with pytest.raises(ValueError, match="cfw"):
    train(dataclasses.replace(base, model=plain), tmp_path)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_single_step_leads_to_x0(sampler, prediction):
  diffusion = DiffusionConfig(prediction=prediction)
  x0, noise = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 4))
  t = jnp.array([250])
  x, target = add_noise(diffusion, x0, noise, t), prediction_target(diffusion, x0, noise, t)
  steps = samplers.plan(diffusion, SamplingConfig(sampler=sampler, steps=1, start_step=250))
  assert steps.timesteps.tolist() == [250]
  np.testing.assert_allclose(samplers.run(lambda x, t: target, x, steps, lambda i: noise), x0, atol=1e-5)
