"""Named settings between speed and quality, which the model's own steps choose from."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
  from stablesr_jax.config import SamplingConfig

Preset = Literal["fast", "balanced", "quality"]

# Models with no more steps than this were made for few: others do them no good.
_FEW_STEPS = 4

# "balanced" of the many is a quarter of the paper's steps, "quality" the paper's.
_OF_MANY_STEPS: Mapping[Preset, Mapping[str, Any]] = {
  "fast": {"sampler": "ddim", "steps": 20, "eta": 0.0},
  "balanced": {"sampler": "ddpm", "steps": 50},
  "quality": {"sampler": "ddpm", "steps": 200},
}
# Of few steps the number of tiles is what is left to choose: their overlap as a share of a tile; None: the model's own.
_OVERLAP: Mapping[Preset, float | None] = {"fast": 1 / 9, "balanced": None, "quality": 1 / 2}


def with_preset(own: "SamplingConfig", preset: Preset) -> "SamplingConfig":
  """A model's own settings with a preset's in their place.

  Models made for many steps get a sampler and a number of steps, as many as fit below their start step; those made for
  up to 4 steps keep these and get an overlap of tiles.
  """
  if own.steps > _FEW_STEPS:
    chosen = _OF_MANY_STEPS[preset]
    return dataclasses.replace(own, **{**chosen, "steps": min(chosen["steps"], own.start_step + 1)})
  share = _OVERLAP[preset]
  return own if share is None else dataclasses.replace(own, tile_overlap=int(share * own.tile_size))
