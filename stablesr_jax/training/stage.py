"""What the training loop asks of a stage."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax

from stablesr_jax.config import ModelConfig
from stablesr_jax.models.parameters import Params
from stablesr_jax.training.logged import Means

Batch = dict[str, jax.Array]


class TrainedStage(Protocol):
  """A stage that trains parameters.

  Making one reads no parameters, so that its program can be looked at without a model at hand.
  """

  @property
  def frozen(self) -> Params:
    """Parameters that take part and never change, read from the starting model when first asked for."""
    ...

  def init(self, key: jax.Array) -> Params:
    """Fresh float32 values of the trained parameters; pure."""
    ...

  def pretrained(self) -> Params:
    """Values that replace fresh ones, where the model that training starts from has them: a part of `init`'s tree."""
    ...

  def prepare(self, batch: Batch, keys: jax.Array) -> Batch:
    """What the loss needs from the data's batch. Pure, each sample by itself; not differentiated."""
    ...

  def loss(
    self, params: Params, frozen: Params, batch: Batch, keys: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, Means]:
    """The mean loss of a prepared batch, and what to log: sums and counts, "loss" among them. Pure."""
    ...

  def validate(self, params: Params, frozen: Params, batch: Batch, keys: jax.Array) -> dict[str, jax.Array]:
    """Pictures of a prepared batch, (B, H, W, 3) in [0, 1]: columns of a sample grid. "ours" is compared with "hr".
    Pure."""
    ...

  def export(self, params: Params, batch: Callable[[], Batch]) -> "Export":
    """The model after this stage, with these trained parameters; `batch` gives a prepared one, to measure with."""
    ...


@dataclasses.dataclass(frozen=True)
class Export:
  """A model to be written: its architecture, and parts with new parameters; others are the starting model's."""

  architecture: ModelConfig
  params: dict[str, Params]
