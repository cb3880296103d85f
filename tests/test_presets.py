"""Presets, and what goes before them."""

import pytest

from stablesr_jax.cli.infer_arguments import Arguments, sampling_of
from stablesr_jax.config import SamplingConfig
from stablesr_jax.inference.presets import with_preset

MANY, FEW = SamplingConfig(eta=0.5), SamplingConfig(steps=4, tile_size=72, tile_overlap=16)


@pytest.mark.parametrize(
  "preset, sampler, steps", [("fast", "ddim", 20), ("balanced", "ddpm", 50), ("quality", "ddpm", 200)]
)
def test_of_many_steps(preset, sampler, steps):
  chosen = with_preset(MANY, preset)
  assert (chosen.sampler, chosen.steps, chosen.overlap) == (sampler, steps, 32)
  assert with_preset(SamplingConfig(steps=10, start_step=30), preset).steps == min(steps, 31)


@pytest.mark.parametrize("preset, overlap", [("fast", 8), ("balanced", 16), ("quality", 36)])
def test_of_few_steps(preset, overlap):
  chosen = with_preset(FEW, preset)
  assert (chosen.sampler, chosen.steps, chosen.overlap) == (FEW.sampler, 4, overlap)


def test_the_command_line_goes_before_the_preset():
  given = Arguments("a.png", "b.png", preset="fast", steps=7)
  assert (sampling_of(given, MANY).sampler, sampling_of(given, MANY).steps) == ("ddim", 7)
  assert sampling_of(Arguments("a.png", "b.png", preset="fast", tile_overlap=3), FEW).overlap == 3
  assert sampling_of(Arguments("a.png", "b.png", preset="quality", tile_size=24), FEW).overlap == 12
