"""How many tiles go through the network together, how many programs a step runs, and when progress is told."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax.config import ComputeConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.inference import denoiser, frames
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.inference.tiling import Sheet
from stablesr_jax.parallel import data_mesh
from tests import micro

SHEET = Sheet.of([(24, 24)], [(24, 24)], (16, 16), 8)  # four tiles on (32, 32)
STEPS = samplers.plan(micro.MODEL.diffusion, dataclasses.replace(micro.SAMPLING, steps=4))


def make(tile_batch: int | None = None, platform="cpu") -> Denoiser:
  return Denoiser(
    micro.MODEL, micro.params(), ComputeConfig(platform=platform), data_mesh(jax.devices()[:1]), tile_batch
  )


def arguments(model: Denoiser, steps: int):
  noise = frames.Noise([jax.random.key(0)], SHEET.canvas, SHEET.row, (32, 4))
  chosen = samplers.Steps(*(column[:steps] for column in STEPS))
  return SHEET, noise, chosen, model.condition(jnp.zeros((1, 77, 8)), 1.0)


@pytest.mark.parametrize("tile_batch, batches", [(1, 4), (2, 2), (4, 1)])
def test_a_step_is_two_dispatches_for_each_batch(monkeypatch, tile_batch, batches):
  """In the trace of the whole loop every program that is run is one equation, and so is every single operation."""
  monkeypatch.setattr(denoiser, "compiler_options", lambda platform: {})  # which a trace refuses
  model, canvas = make(tile_batch), jax.ShapeDtypeStruct((32, 32, 4), jnp.float32)

  def dispatches(steps: int) -> int:
    given = arguments(model, steps)
    return len(jax.make_jaxpr(lambda x, lr: model.sample(x, lr, *given))(canvas, canvas).eqns)

  assert dispatches(4) - dispatches(3) == 2 * batches


@pytest.mark.parametrize(
  "tiles, sizes",
  [(1, [1]), (2, [2]), (3, [4]), (5, [4, 1]), (6, [8]), (9, [8, 1]), (12, [16]), (32, [32]), (49, [32, 16, 1])],
)
def test_batches_are_powers_of_two_and_mostly_filled(monkeypatch, tiles, sizes):
  monkeypatch.setattr(denoiser, "free_memory", lambda *_: np.inf)
  sheet = Sheet.of([(16, 8 + 8 * tiles)], [(16, 8 + 8 * tiles)], (16, 16), 8)
  assert len(sheet.starts) == tiles
  found = make(platform="gpu").batches(sheet)
  assert [len(batch.starts) for batch in found] == sizes
  used = np.concatenate([batch.starts[batch.used] for batch in found])
  np.testing.assert_array_equal(used, sheet.starts)


def test_little_memory_makes_small_batches(monkeypatch):
  need = 32 * 16**2 * micro.UNET.channels * 4
  monkeypatch.setattr(denoiser, "free_memory", lambda *_: 2 * 5 * need)
  assert make(platform="gpu").most_tiles(16**2) == 4
  monkeypatch.setattr(denoiser, "free_memory", lambda *_: 0)
  assert make(platform="gpu").most_tiles(16**2) == 1
  assert make(platform="cpu").most_tiles(16**2) == 1
  assert make(3, platform="gpu").most_tiles(16**2) == 3


def test_progress_is_told_when_the_step_after_it_is_running(monkeypatch):
  model, happened = make(4), []
  predict = model.predict
  monkeypatch.setattr(model, "predict", lambda *args: happened.append("begun") or predict(*args))
  x = lambda: jnp.zeros((32, 32, 4))
  model.sample(x(), x(), *arguments(model, 3), progress=lambda done, steps: happened.append((done, steps)))
  assert happened == ["begun", "begun", (1, 3), "begun", (2, 3), (3, 3)]
