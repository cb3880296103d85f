"""The training loop and its parts, with networks of a few parameters; runs of train.py are in test_training_runs.py."""

import dataclasses
import json
import math
import os
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from stablesr_jax.checkpoints.store import NULL_PROMPT, Manifest, ModelWriter, load_params, read_manifest
from stablesr_jax.cli import train as cli
from stablesr_jax.config import ComputeConfig, DiffusionConfig, DiscriminatorConfig, SamplingConfig
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.data.batches import Batches
from stablesr_jax.diffusion import objective, samplers, schedule
from stablesr_jax.errors import UserError
from stablesr_jax.models.components import modules
from stablesr_jax.models.discriminator import PatchDiscriminator
from stablesr_jax.models.kl_autoencoder import posterior
from stablesr_jax.models.parameters import is_modulation, merge, split
from stablesr_jax.parallel import data_mesh
from stablesr_jax.training import loop
from stablesr_jax.training import state as states
from stablesr_jax.training.config import (
  AutoencoderStage,
  CfwDataStage,
  CfwStage,
  OptimizerConfig,
  PriorStage,
  RestorerStage,
  TrainConfig,
  ValidationConfig,
)
from stablesr_jax.training.logged import loss_by_band
from stablesr_jax.training.metric_writer import MetricWriter, means
from stablesr_jax.training.model_export import export
from stablesr_jax.training.run_folder import note_config
from stablesr_jax.training.stage import Export
from stablesr_jax.training.stages.autoencoder import AutoencoderTrainer
from stablesr_jax.training.stages.reconstruction import ReconstructionLoss
from tests import micro
from tests.micro import photograph, random_params

MICRO = dataclasses.replace(micro.MODEL, autoencoder=dataclasses.replace(micro.AUTOENCODER, cfw=False))


@pytest.fixture(scope="module", autouse=True)
def keep_small_programs(compile_cache):
  """Runs that go on compile the same programs anew."""
  before = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
  yield
  jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """A folder of four pictures."""
  folder = tmp_path_factory.mktemp("pictures")
  for number in range(4):
    Image.fromarray(np.roll(photograph(24, 28), 5 * number, axis=1)).save(folder / f"{number}.png")
  return folder


@pytest.fixture
def base(pictures):
  data = DataConfig((SourceConfig("folder", (str(pictures),)),), crop_size=16, prefetch=1)
  return TrainConfig(
    stage=AutoencoderStage(perceptual_weight=0.0, adversarial_weight=0.0),
    data=data,
    model=MICRO,
    steps=4,
    batch_size=4,
    optimizer=OptimizerConfig(learning_rate=1e-2),
    compute=ComputeConfig(),
    log_every=1,
    checkpoint_every=2,
  )


class Tint:
  """A stage whose model multiplies colours by three numbers and adds noise; steps in `broken` have no finite loss."""

  broken: tuple[int, ...] = ()
  frozen: Any = {}

  def __init__(self, config: Any = None, mesh: Any = None):
    pass

  def init(self, key):
    return {"tint": {"scale": jax.random.normal(key, (3,))}}

  def pretrained(self):
    return {}

  def prepare(self, batch, keys):
    return {"hr": batch["hr"].astype(jnp.float32) / 255}

  def loss(self, params, frozen, batch, keys, step):
    scale, image = params["tint"]["scale"], batch["hr"]
    noise = jax.vmap(lambda key: jax.random.normal(key, image.shape[1:]))(keys)
    losses = jnp.mean(jnp.square(self._tinted(params, image) + 0.1 * noise - image), axis=(1, 2, 3))
    losses = losses / jnp.where(jnp.isin(step, jnp.array(self.broken, jnp.int32)), 0 * scale[0], 1)
    return losses.mean(), {"loss": (losses.sum(), jnp.float32(len(keys)))}

  def validate(self, params, frozen, batch, keys):
    return {"ours": jnp.clip(self._tinted(params, batch["hr"]), 0, 1), "hr": batch["hr"]}

  def export(self, params, batch):
    return Export(MICRO, {part: random_params(MICRO, part) for part in ("autoencoder",)})

  def _tinted(self, params, image):
    return image * params["tint"]["scale"].reshape(1, 1, 1, 3)


@pytest.fixture
def tint(monkeypatch):
  """Trains `Tint` in place of the autoencoder; gives the class."""
  stage = type("Tint", (Tint,), {})
  monkeypatch.setitem(loop.STAGES, AutoencoderStage, stage)
  return stage


def lines(folder) -> list[dict[str, Any]]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder) -> list[tuple[int, float]]:
  return [(line["step"], line["loss"]) for line in lines(folder) if "loss" in line]


def steps_of(config: TrainConfig, stage: Any, count: int) -> list[tuple[states.TrainState, Any]]:
  """The state and means after each of some steps on one batch, from the same start."""
  mesh = data_mesh()
  state = states.create(config, stage.init(jax.random.key(1)))
  batch = {"hr": jnp.asarray(np.random.default_rng(0).integers(0, 256, (config.batch_size, 8, 8, 3), np.uint8))}
  step = states.make_step(stage, config, mesh, states.shardings(config, state, mesh))
  taken = []
  for _ in range(count):
    state, new = step(jax.tree.map(jnp.copy, state), stage.frozen, batch)
    taken.append((state, jax.device_get(new)))
  return taken


def equal(one: Any, other: Any) -> bool:
  same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other)
  return all(jax.tree.leaves(same))


# Steps.


def test_the_learning_rate_grows_and_falls():
  rate = states.learning_rate(OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_steps=4), 12)
  np.testing.assert_allclose([rate(i) for i in range(5)], [0.5, 1.0, 1.5, 2.0, 2.0])
  np.testing.assert_allclose([rate(8), rate(12)], [1.0, 0.0], atol=1e-6)
  constant = states.learning_rate(OptimizerConfig(learning_rate=2.0), 12)
  np.testing.assert_allclose([constant(i) for i in (0, 11)], 2.0)


def test_the_first_update_is_adams_clipped_and_decayed():
  config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, clip_norm=1e-6)
  params = {"w": jnp.array([1.0, -2.0])}
  optimizer = states.make_optimizer(config, 10)
  updates, _ = optimizer.update({"w": jnp.array([30.0, -40.0])}, optimizer.init(params), params)
  # Adam's first step is the gradient over its size; clipped to 1e-6, the size is no longer far above Adam's 1e-8.
  clipped = np.array([0.6e-6, -0.8e-6])
  expected = -0.1 * (clipped / (np.abs(clipped) + 1e-8) + 0.5 * np.array([1.0, -2.0]))
  np.testing.assert_allclose(updates["w"], expected, rtol=1e-4)


def test_a_limit_of_the_gradient_does_not_change_what_a_checkpoint_holds():
  params = {"w": jnp.zeros(3)}
  with_limit, without = (
    states.make_optimizer(OptimizerConfig(clip_norm=clip), 10).init(params) for clip in (1.0, None)
  )
  assert jax.tree.structure(with_limit) == jax.tree.structure(without)


def test_accumulated_parts_give_the_whole_batchs_step(base):
  config = dataclasses.replace(base, batch_size=8)
  parts = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, accumulation=4))
  for (whole, of_whole), (divided, of_parts) in zip(
    steps_of(config, Tint(), 3), steps_of(parts, Tint(), 3), strict=True
  ):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), of_parts, of_whole)
    np.testing.assert_allclose(divided.params["tint"]["scale"], whole.params["tint"]["scale"], rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(base):
  stage = Tint()
  stage.broken = (1, 2)
  config = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, ema_decay=0.9))
  (first, _), (second, means_of_second), (third, _), (fourth, _) = steps_of(config, stage, 4)
  for broken in (second, third):
    assert equal((broken.params, broken.opt_state, broken.ema), (first.params, first.opt_state, first.ema))
  assert [int(s.bad_steps) for s in (first, second, third, fourth)] == [0, 1, 2, 0]
  assert [int(s.skipped) for s in (first, second, third, fourth)] == [0, 1, 2, 2]
  assert [int(s.step) for s in (first, second, third, fourth)] == [1, 2, 3, 4]
  assert not equal(fourth.params, first.params)
  assert means(means_of_second) == {}  # nothing that would make a mean of several steps NaN


def test_the_moving_average(base):
  """Fixed weights of the start's and every step's parameters, by decays of 1/10 and then of at most 0.15."""
  config = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, ema_decay=0.15))
  scale = lambda params: np.asarray(params["tint"]["scale"], np.float64)
  states_of = [state for state, _ in steps_of(config, Tint(), 3)]
  values = np.stack([scale(Tint().init(jax.random.key(1))), *(scale(state.params) for state in states_of)])
  weights = [[0.1, 0.9, 0, 0], [0.015, 0.135, 0.85, 0], [0.00225, 0.02025, 0.1275, 0.85]]
  for state, weight in zip(states_of, weights, strict=True):
    np.testing.assert_allclose(scale(state.ema), np.array(weight) @ values, rtol=1e-6)
    assert state.averaged is state.ema
  assert np.ptp(values, axis=0).min() > 1e-3


def test_fsdp_divides_large_arrays_along_their_longest_axis(base):
  mesh: Any = jax.sharding.AbstractMesh((4,), ("data",))
  sharded = dataclasses.replace(base, sharding="fsdp")
  shapes = {
    "kernel": (3, 3, 128, 256),
    "longest axis is odd": (257, 128),
    "nothing is divisible": (255, 257),
    "small": (64, 64),
    "number": (),
  }
  abstract = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
  specs = {name: sharding.spec for name, sharding in states.shardings(sharded, abstract, mesh).items()}
  assert specs == {
    "kernel": jax.P(None, None, None, "data"),
    "longest axis is odd": jax.P(None, "data"),
    "nothing is divisible": jax.P(),
    "small": jax.P(),
    "number": jax.P(),
  }
  assert {s.spec for s in states.shardings(base, abstract, mesh).values()} == {jax.P()}


# The loop.


def test_a_run_stops_when_it_diverges_and_names_the_last_good_checkpoint(base, tint, tmp_path):
  tint.broken = (5, 6, 7, 8, 9)
  config = dataclasses.replace(base, steps=20, max_bad_steps=4)
  with pytest.raises(loop.Diverged, match=r"4 steps in a row, at step 9; last good one: \S+/checkpoints/4;"):
    loop.train(config, tmp_path)
  assert [line["skipped_steps"] for line in lines(tmp_path)] == [0] * 5 + [1, 2, 3, 4]
  assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4, 5]  # the others have none
  tint.broken = ()
  assert loop.train(dataclasses.replace(config, steps=6), tmp_path)
  assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_diverges_at_once_has_no_good_checkpoint(base, tint, tmp_path):
  tint.broken = (0, 1, 2, 3)
  with pytest.raises(loop.Diverged, match="at step 2; there is no checkpoint from before"):
    loop.train(dataclasses.replace(base, max_bad_steps=2), tmp_path)


@pytest.mark.training
def test_a_run_of_the_autoencoder_goes_on_to_the_bit_and_leaves_a_model(base, tmp_path):
  whole, halves = tmp_path / "whole", tmp_path / "halves"
  assert loop.train(base, whole)
  assert loop.train(dataclasses.replace(base, steps=2), halves)
  assert loop.train(base, halves)
  assert losses(halves) == losses(whole)
  assert len(losses(whole)) == 4
  manifests = [read_manifest(folder / "model") for folder in (whole, halves)]
  params = [load_params(folder / "model", manifests[0], ["autoencoder"]) for folder in (whole, halves)]
  assert equal(*params)
  assert manifests[0].architecture == manifests[1].architecture
  assert manifests[0].sampling.fidelity_weight == 0  # it has no CFW
  autoencoder = manifests[0].architecture.autoencoder
  assert autoencoder is not None and manifests[0].architecture.unet is None
  assert autoencoder == dataclasses.replace(MICRO.autoencoder, scale_factor=autoencoder.scale_factor)
  # Latents times the factor have variance 1 on the batch that comes after training.
  data = loop.make_dataset(base.data, base.batch_size, process_index=0, process_count=1)
  data.set_state({"batches": base.steps})
  image = next(data)["hr"] / np.float32(127.5) - 1
  data.close()
  module = modules(manifests[0].architecture)["autoencoder"]
  encode = lambda params, image: posterior(module.apply({"params": params}, image, method="encode")[0])
  mean, std = jax.jit(encode)(params[0]["autoencoder"], image)
  spread = math.sqrt(np.var(mean) + np.mean(np.square(std)))
  assert autoencoder.scale_factor * spread == pytest.approx(1, rel=1e-3)


def test_an_autoencoder_that_diverged_is_told(base):
  trainer = AutoencoderTrainer(base, data_mesh())
  params = {"autoencoder": random_params(trainer._architecture, "autoencoder")}
  batch = lambda: {"hr": np.zeros((1, 16, 16, 3), np.float32)}
  for value in (np.nan, 1e30):
    wrong = jax.tree.map(lambda leaf, value=value: leaf * np.float32(value), params)
    with pytest.raises(UserError, match="^training diverged: .*lower optimizer.learning-rate"):
      trainer.export(wrong, batch)


def test_sigterm_saves_the_step_and_the_same_call_goes_on(base, tint, tmp_path, monkeypatch):
  whole, stopped = tmp_path / "whole", tmp_path / "stopped"
  config = dataclasses.replace(base, steps=7, checkpoint_every=5, log_every=5)
  assert loop.train(dataclasses.replace(config, log_every=1), whole)
  take, taken = Batches.__next__, []

  def kill_at_three(batches):
    taken.append(take(batches))
    if len(taken) == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return taken[-1]

  monkeypatch.setattr(Batches, "__next__", kill_at_three)
  before = signal.getsignal(signal.SIGTERM)
  assert not loop.train(config, stopped)
  assert signal.getsignal(signal.SIGTERM) is before
  assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["3"]
  assert not (stopped / "model").exists()
  assert loop.train(config, stopped)
  assert [step for step, _ in losses(stopped)] == [3, 5, 7]
  expected = dict(losses(whole))
  np.testing.assert_allclose(dict(losses(stopped))[7], (expected[6] + expected[7]) / 2, rtol=1e-6)


def test_validation_and_what_is_kept(base, tint, tmp_path):
  validation = ValidationConfig(base.data, images=3, every=4)
  config = dataclasses.replace(base, steps=6, checkpoint_every=1, keep_last=2, keep_every=3, validation=validation)
  assert loop.train(config, tmp_path)
  assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [3, 5, 6]
  validated = [line for line in lines(tmp_path) if "validation/psnr/ours" in line]
  assert [line["step"] for line in validated] == [4, 6]
  assert all(line["validation/psnr/ours"] > 0 and line["validation/ssim/ours"] <= 1 for line in validated)
  grids = sorted((tmp_path / "samples").iterdir())
  assert [path.name for path in grids] == ["0000004.png", "0000006.png"]
  with Image.open(grids[0]) as grid:
    assert grid.size == (2 * 16, 3 * 16)


def test_export_only_writes_the_model_of_the_last_checkpoint(base, tint, tmp_path):
  with pytest.raises(ValueError, match="has no checkpoint to export"):
    loop.train(base, tmp_path, export_only=True)
  assert loop.train(dataclasses.replace(base, steps=2), tmp_path)
  model = tmp_path / "model" / "model.json"
  model.unlink()
  (tmp_path / "model").rename(tmp_path / "gone")
  assert loop.train(base, tmp_path, export_only=True)
  assert model.is_file()
  assert len(losses(tmp_path)) == 2


def test_a_batch_that_the_devices_cannot_divide_is_refused(base, tmp_path, monkeypatch):
  optimizer = dataclasses.replace(base.optimizer, accumulation=2)
  four = jax.sharding.Mesh(np.repeat(jax.devices()[:1], 4), ("data",))
  monkeypatch.setattr(loop, "data_mesh", lambda: four)
  with pytest.raises(ValueError, match=r"batch-size 4: must be a multiple of 8 \(4 devices x accumulation 2\)"):
    loop.train(dataclasses.replace(base, optimizer=optimizer), tmp_path / "run")


def test_a_folder_takes_no_run_of_another_stage_or_architecture(base, tmp_path):
  assert note_config(tmp_path, base) == []
  assert note_config(tmp_path, base) == []
  slower = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, learning_rate=1e-3))
  assert note_config(tmp_path, slower) == ["optimizer.learning_rate: 0.01 before, 0.001 now"]
  with pytest.raises(ValueError, match="has another run: kind: AutoencoderStage before, PriorStage now"):
    note_config(tmp_path, dataclasses.replace(slower, stage=PriorStage()))
  wider = dataclasses.replace(MICRO, autoencoder=dataclasses.replace(MICRO.autoencoder, channels=16))
  with pytest.raises(ValueError, match=r"has another run: model.autoencoder.channels: 8 before, 16 now"):
    note_config(tmp_path, dataclasses.replace(slower, model=wider))
  assert note_config(tmp_path, slower) == []  # what was refused is not noted
  (tmp_path / "config.json").write_text('{"kind": ')
  with pytest.raises(UserError, match="config.json: not valid JSON"):
    note_config(tmp_path, slower)


# Metrics.


def test_lines_of_lost_steps_and_half_lines_are_removed(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.2}\n{"step": 2, "psn')
  writer = MetricWriter(tmp_path, 2)
  writer.write(3, {"loss": 0.25})
  writer.close()
  assert losses(tmp_path) == [(1, 1.0), (2, 0.5), (3, 0.25)]


def test_means_leave_out_what_never_came():
  assert means({"loss": (np.float32(6), np.float32(4)), "loss/t0-249": (np.float32(0), np.float32(0))}) == {"loss": 1.5}


# Export.


def test_an_exported_model_keeps_the_parts_that_were_not_trained(base, tmp_path):
  source = tmp_path / "source"
  writer = ModelWriter(source)
  for part in ("unet", "autoencoder"):
    writer.write(part, random_params(MICRO, part))
  writer.write(NULL_PROMPT, {NULL_PROMPT: np.full((77, 8), 0.5, np.float32)})
  sources = ({"file": "a.ckpt", "sha256": "0", "kind": "x"},)
  writer.commit(Manifest("source", dataclasses.replace(MICRO, time_aware_encoder=None), sources=sources))
  config = dataclasses.replace(base, model_path=str(source), sampling=SamplingConfig(steps=7))
  mesh, trained = data_mesh(), random_params(MICRO, "autoencoder", seed=1)

  for architecture, others in (
    (dataclasses.replace(MICRO, time_aware_encoder=None), ["unet", NULL_PROMPT]),
    (dataclasses.replace(MICRO, time_aware_encoder=None, unet=None), []),
  ):
    stage: Any = Tint()
    stage.export = lambda params, batch, architecture=architecture: Export(architecture, params)
    export(stage, {"autoencoder": trained}, dict, config, mesh, tmp_path / "run" / "model")
    manifest = read_manifest(tmp_path / "run" / "model")
    assert (manifest.name, manifest.sampling.steps, manifest.sources) == ("run", 7, sources)
    parts = [path.name for path in (tmp_path / "run" / "model").iterdir() if path.is_dir()]
    assert sorted(parts) == sorted(["autoencoder", *others])
    assert equal(load_params(tmp_path / "run" / "model", manifest, ["autoencoder"])["autoencoder"], trained)
    assert equal(load_params(tmp_path / "run" / "model", manifest, others), load_params(source, manifest, others))


# What the diffusion networks learn.


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_what_is_to_be_predicted_gives_the_latent_back(prediction):
  config = DiffusionConfig(prediction=prediction)
  rng = np.random.default_rng(0)
  x0, noise = (jnp.asarray(rng.standard_normal((3, 2, 2, 4)), jnp.float32) for _ in range(2))
  t = np.array([0, 500, 900], np.int32)
  x = schedule.add_noise(config, x0, noise, jnp.asarray(t))
  target = objective.prediction_target(config, x0, noise, jnp.asarray(t))
  signal_of, level = schedule.coefficients(config, jnp.asarray(t), 4)
  np.testing.assert_allclose(x, signal_of * x0 + level * noise, rtol=1e-5)
  np.testing.assert_allclose(signal_of**2 + level**2, 1, rtol=1e-6)
  found = (x - level * target) / signal_of if prediction == "eps" else signal_of * x - level * target
  np.testing.assert_allclose(found, x0, atol=1e-4)


def test_losses_are_told_apart_by_timestep():
  of = jnp.array([1.0, 2.0, 4.0, 8.0])
  bands = loss_by_band(DiffusionConfig(), of, jnp.array([0, 249, 250, 999]))
  sums = {name: (float(total), float(count)) for name, (total, count) in bands.items()}
  assert sums == {
    "loss/t0-249": (3, 2),
    "loss/t250-499": (4, 1),
    "loss/t500-749": (0, 0),
    "loss/t750-999": (8, 1),
  }


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_compiled_loop_takes_the_samplers_steps(sampler):
  steps = samplers.plan(DiffusionConfig(), SamplingConfig(sampler=sampler, steps=5, eta=0.5))
  rng = np.random.default_rng(0)
  x, noises = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((2, 2, 2, 4), (5, 2, 2, 2, 4)))
  predict = lambda x, t: 0.5 * x + jnp.sin(t.astype(jnp.float32))
  expected = x
  for number in range(5):
    at = samplers.Steps(*(field[number] for field in steps))
    expected = samplers.step(expected, predict(expected, jnp.asarray(at.timesteps)), noises[number], at)
  np.testing.assert_allclose(samplers.run(predict, x, steps, lambda i: noises[i]), expected, rtol=1e-4, atol=1e-4)


def test_parameters_are_split_by_path_and_merged():
  params = {"down": {"sft": {"kernel": 1}, "conv": {"kernel": 2}}, "up": {"addition": {"kernel": 3}}}
  chosen, others = split(params, is_modulation)
  assert chosen == {"down": {"sft": {"kernel": 1}}, "up": {"addition": {"kernel": 3}}}
  assert others == {"down": {"conv": {"kernel": 2}}}
  assert merge(others, chosen) == params
  assert merge(params, {"down": {"conv": {"kernel": 5}}})["down"] == {"sft": {"kernel": 1}, "conv": {"kernel": 5}}


# The loss of images against images.

ADVERSARIAL = AutoencoderStage(
  perceptual_weight=0.0,
  adversarial_weight=0.5,
  adversarial_start=10,
  discriminator=DiscriminatorConfig(width=4, layers=1),
)


@pytest.fixture(scope="module")
def judged():
  """(discriminator's parameters, image, step) -> the adversarial stage's loss, what it logs, and its gradients."""
  loss = ReconstructionLoss(ADVERSARIAL, ComputeConfig(), data_mesh())
  target = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
  of = lambda params, image, step: loss(params, {}, image, target, step)
  both = jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))
  return jax.jit(lambda: loss.init(jax.random.key(0), 8))(), target, both


def test_the_discriminator_starts_late(judged):
  params, target, both = judged
  image = target + 0.25
  (value, logged), (of_discriminator, of_image) = both(params, image, 9)
  assert value == pytest.approx(0.25, rel=1e-5)
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_discriminator))
  np.testing.assert_allclose(of_image, 1 / image.size, rtol=1e-5)
  assert {name: float(count) for name, (_, count) in logged.items()} == {
    "l1": 2,
    "discriminator": 2,
    "adaptive_weight": 2,
  }
  (later, _), (of_discriminator, of_image) = both(params, image, 10)
  assert later > value
  assert any(np.any(leaf) for leaf in jax.tree.leaves(of_discriminator))
  assert np.ptp(of_image) > 0


def test_neither_loss_reaches_the_others_parameters(judged):
  params, target, both = judged
  image = target + 0.25
  (_, logged), (of_discriminator, of_image) = both(params, image, 10)
  value = lambda name: logged[name][0] / logged[name][1]
  network = PatchDiscriminator(ADVERSARIAL.discriminator)
  judge = lambda params, image: network.apply({"params": params["discriminator"]}, image)

  def critic(params):
    real, fake = judge(params, target), judge(params, image)
    return (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))) / 2

  expected = jax.jit(jax.grad(critic))(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), of_discriminator, expected)
  pull = jax.jit(jax.grad(lambda image: -jnp.mean(judge(params, image))))(image)
  np.testing.assert_allclose(of_image, 1 / image.size + 0.5 * value("adaptive_weight") * pull, rtol=1e-3, atol=1e-6)
  norm = lambda gradient: float(np.sqrt(np.sum(np.square(gradient))))
  assert value("adaptive_weight") == pytest.approx(
    norm(np.full(image.shape, 1 / image.size)) / (norm(pull) + 1e-4), rel=1e-5
  )


def test_a_fixed_weight_takes_the_verdict_as_it_is(judged):
  params, target, both = judged
  image = target + 0.25
  loss = ReconstructionLoss(dataclasses.replace(ADVERSARIAL, adversarial_scaling="fixed"), ComputeConfig(), data_mesh())
  (of_discriminator, of_image), logged = jax.jit(
    jax.grad(lambda params, image: loss(params, {}, image, target, jnp.int32(10)), argnums=(0, 1), has_aux=True)
  )(params, image)
  network = PatchDiscriminator(ADVERSARIAL.discriminator)
  pull = jax.jit(jax.grad(lambda image: -jnp.mean(network.apply({"params": params["discriminator"]}, image))))(image)
  np.testing.assert_allclose(of_image, 1 / image.size + 0.5 * pull, rtol=1e-3, atol=1e-6)
  assert set(logged) == {"l1", "discriminator"}
  adaptive = both(params, image, 10)[1][0]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), of_discriminator, adaptive)


def test_the_perceptual_distance_needs_weights():
  with pytest.raises(ValueError, match="stage.lpips: LPIPS needs weights: convert .* or train without"):
    ReconstructionLoss(AutoencoderStage(), ComputeConfig(), data_mesh())


def test_no_discriminator_is_trained_without_a_weight():
  loss = ReconstructionLoss(dataclasses.replace(ADVERSARIAL, adversarial_weight=0.0), ComputeConfig(), data_mesh())
  assert loss.init(jax.random.key(0), 8) == {}


# The command line.

CONFIG = """
from stablesr_jax.data import DataConfig, SourceConfig
from stablesr_jax.data.batches import Batches
from stablesr_jax.training.config import TrainConfig
from tests import test_training

def get_config():
  return test_training.from_cli({stage})
"""


def from_cli(stage: Any) -> TrainConfig:
  """What the config files of these tests return."""
  data = DataConfig((SourceConfig("folder", ("nowhere",)),), crop_size=16)
  return TrainConfig(stage=stage, data=data, model=MICRO, steps=2, batch_size=4, log_every=1, checkpoint_every=1)


def error_of(argv, capsys) -> str:
  """The one line that the command line ends with."""
  with pytest.raises(SystemExit) as stop:
    raise SystemExit(cli.main([str(argument) for argument in argv]))
  message = capsys.readouterr().err
  assert stop.value.code == 2, message
  assert message.startswith("train.py: error: ") and message.count("\n") == 1, message
  return message


@pytest.fixture
def config_file(tmp_path):
  path = tmp_path / "given.py"
  path.write_text(CONFIG.format(stage="test_training.AutoencoderStage(perceptual_weight=0.0, adversarial_weight=0.0)"))
  return path


def test_a_missing_config_is_named(tmp_path, capsys):
  assert "--config: name a file of configs/" in error_of(["--workdir", tmp_path], capsys)
  assert "no.py: no such config file" in error_of(["--config", "no.py", "--workdir", tmp_path], capsys)


@pytest.mark.parametrize(
  "text, message",
  [
    ("x = 1", "wrong.py: has no get_config()"),
    ("def get_config(): return 1", "wrong.py: get_config() must return a TrainConfig, not int"),
    ("def get_config(:", "wrong.py:1: SyntaxError: invalid syntax"),
    ("import nothing_of_this_name", "wrong.py:1: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    (CONFIG.format(stage="steps=-1"), "wrong.py:8: TypeError: from_cli() got an unexpected keyword argument 'steps'"),
  ],
)
def test_a_config_that_is_none_is_named(tmp_path, capsys, text, message):
  path = tmp_path / "wrong.py"
  path.write_text(text)
  assert message in error_of(["--config", path, "--workdir", tmp_path], capsys)


def test_wrong_flags_are_named(config_file, tmp_path, capsys):
  arguments = ["--config", config_file, "--workdir", tmp_path / "run"]
  message = error_of([*arguments, "--optimizer.learning-rat", "1"], capsys)
  assert "--optimizer.learning-rat" in message and "--optimizer.learning-rate" in message
  assert "--workdir" in error_of(["--config", config_file], capsys)
  assert "--steps" in error_of([*arguments, "--steps", "many"], capsys)
  assert "batch-size 5: must be a multiple of accumulation 2" in error_of(
    [*arguments, "--batch-size", "5", "--optimizer.accumulation", "2"], capsys
  )
  assert "give all three or none" in error_of([*arguments, "--processes", "2"], capsys)


def test_missing_data_is_named_and_nothing_is_left(config_file, tmp_path, capsys):
  message = error_of(["--config", config_file, "--workdir", tmp_path / "run"], capsys)
  assert "nowhere: no such folder" in message
  assert not (tmp_path / "run").exists()


def test_without_a_checkpoint_nothing_is_exported_or_made(base, tmp_path):
  with pytest.raises(UserError, match="run: has no checkpoint to export$"):
    loop.train(base, tmp_path / "run", export_only=True)
  assert not (tmp_path / "run").exists()


def test_a_starting_model_that_does_not_fit_is_named(base, tmp_path):
  prior = dataclasses.replace(base, stage=PriorStage())
  with pytest.raises(ValueError, match="model-path: this stage needs a model with autoencoder"):
    loop.train(prior, tmp_path / "run")
  with pytest.raises(ValueError, match="nothing: no such model folder"):
    loop.train(dataclasses.replace(prior, model_path=str(tmp_path / "nothing")), tmp_path / "run")
  writer = ModelWriter(tmp_path / "other")
  writer.commit(Manifest("other", dataclasses.replace(MICRO, unet=None, time_aware_encoder=None)))
  there = dataclasses.replace(prior, model_path=str(tmp_path / "other"))
  wider = dataclasses.replace(MICRO, autoencoder=dataclasses.replace(MICRO.autoencoder, channels=16))
  with pytest.raises(ValueError, match="other: .*: autoencoder.channels is 8, not 16$"):
    loop.train(dataclasses.replace(there, model=wider), tmp_path / "run")
  with pytest.raises(ValueError, match="other: this model has no unet$"):
    loop.train(dataclasses.replace(there, stage=RestorerStage()), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_set_for_cfw_is_made_by_the_very_restorer(base, tmp_path):
  from stablesr_jax.training.make_cfw_set import make_cfw_set

  writer = ModelWriter(tmp_path / "restorer")
  writer.commit(Manifest("restorer", MICRO))
  other = dataclasses.replace(MICRO, unet=dataclasses.replace(MICRO.unet, sft_hidden_channels=16))
  config = dataclasses.replace(base, stage=CfwDataStage(), model=other, model_path=str(tmp_path / "restorer"))
  with pytest.raises(ValueError, match="unet.sft_hidden_channels is 8, not 16$"):
    make_cfw_set(config, tmp_path / "set")


def test_cfw_is_trained_on_its_set(base, tmp_path):
  with pytest.raises(ValueError, match="data.sources: folder, but CFW is trained on a cfw_set"):
    loop.train(
      dataclasses.replace(base, stage=CfwStage(perceptual_weight=0.0, adversarial_weight=0.0)), tmp_path / "run"
    )
