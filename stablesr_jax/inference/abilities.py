"""What a model can do, by its manifest: what it cannot is told before it is loaded."""

from collections.abc import Container
from typing import TYPE_CHECKING

from stablesr_jax.config import ModelConfig, SamplingConfig
from stablesr_jax.errors import UserError

if TYPE_CHECKING:
  from stablesr_jax.checkpoints.store import Manifest


def require_parts(manifest: "Manifest") -> None:
  """Raises UserError if a model lacks a part that restoring takes."""
  for part in ("unet", "time_aware_encoder", "autoencoder"):
    if getattr(manifest.architecture, part) is None:
      raise UserError(f"{manifest.name}: this model has no {part.replace('_', ' ')}, so it cannot restore pictures")


def require_able(config: ModelConfig, sampling: SamplingConfig, embedded: Container[str] = ("",)) -> None:
  """Checks that a model can do what the settings ask for.

  Args:
    config: The model's architecture; of its text encoder, what there is to encode prompts with.
    sampling: The settings.
    embedded: The prompts whose embeddings are known.

  Raises:
    UserError: It cannot; the message names the setting.
  """
  sampling.require_within(config.diffusion, "start_step")
  if sampling.fidelity_weight > 0 and not (config.autoencoder and config.autoencoder.cfw):
    raise UserError(f"fidelity-weight {sampling.fidelity_weight}: this model has no CFW; only 0 is possible")
  for name, prompt in (("prompt", sampling.prompt), ("negative-prompt", sampling.negative_prompt)):
    if prompt not in embedded and config.text_encoder is None:
      raise UserError(f"{name} {prompt!r}: this model has no text encoder; only the null prompt is possible")
