"""What a checkpoint is, told from its keys, and where each part of a model lies in it."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from stablesr_jax.checkpoints import names
from stablesr_jax.checkpoints.joined import Joined, open_checkpoint
from stablesr_jax.checkpoints.tensor_file import sha256
from stablesr_jax.errors import UserError


class Tensors(Protocol):
  """Named tensors, read one at a time: `TensorFile` or `Joined`."""

  path: pathlib.Path

  def __iter__(self) -> Iterator[str]: ...
  def __contains__(self, name: object) -> bool: ...
  def shape(self, name: str) -> tuple[int, ...]: ...
  def dtype(self, name: str) -> np.dtype: ...
  def read(self, name: str) -> np.ndarray: ...
  def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of published file.

  Attributes:
    title: for messages.
    recognise: does a set of keys belong to a file of this kind?
    parts: component -> (prefix of its keys, its name map).
    completed_by: kinds of which one must be there too, and what to tell the user where none is.
  """

  title: str
  recognise: Callable[[Container[str]], bool]
  parts: dict[str, tuple[str, Callable[[Any], names.Names]]]
  completed_by: tuple[frozenset[str], str] | None = None


def _has(*wanted: str) -> Callable[[Container[str]], bool]:
  return lambda keys: all(key in keys for key in wanted)


def _without(recognise: Callable[[Container[str]], bool], *unwanted: str) -> Callable[[Container[str]], bool]:
  return lambda keys: recognise(keys) and not any(key in keys for key in unwanted)


_UNET = ("model.diffusion_model.", names.unet)
_ENCODER = ("structcond_stage_model.", names.time_aware_encoder)
_FIRST_STAGE = ("first_stage_model.", names.autoencoder)
_TEXT = ("cond_stage_model.model.", names.text_encoder)
_SPADE = "model.diffusion_model.middle_block.0.spade.mlp_gamma.weight"
_UNET_IN = "model.diffusion_model.input_blocks.0.0.weight"
_STRUCTURE_IN = "structcond_stage_model.input_blocks.0.0.weight"
_FUSION = "decoder.fusion_layer_1.encode_enc_1.conv1.weight"

# What a part is taken from where several files have it: the first kind here. Recognised in this order, too.
KINDS = {
  "stablesr_webui": Kind(
    "the web UI's StableSR module (encoder and SFT layers only)",
    _without(_has(_STRUCTURE_IN, _SPADE), _UNET_IN),
    {"time_aware_encoder": _ENCODER, "unet": _UNET},
    (frozenset({"stable_diffusion", "diffusers", "stablesr"}), "add a Stable Diffusion 2.1 file or folder"),
  ),
  "cfw": Kind(
    "an autoencoder with CFW", _has(_FUSION, "encoder.conv_in.weight"), {"autoencoder": ("", names.autoencoder)}
  ),
  "cfw_only": Kind(
    "CFW layers without their autoencoder",
    _has(_FUSION),
    {"autoencoder": ("", names.autoencoder)},
    (frozenset({"autoencoder", "stablesr", "stable_diffusion", "diffusers"}), "add the autoencoder's file"),
  ),
  "autoencoder": Kind(
    "an autoencoder",
    _has("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight", "encoder.mid.attn_1.q.weight"),
    {"autoencoder": ("", names.autoencoder)},
  ),
  "stablesr": Kind(
    "a StableSR model",
    _has(_STRUCTURE_IN, _UNET_IN),
    {"time_aware_encoder": _ENCODER, "unet": _UNET, "autoencoder": _FIRST_STAGE, "text_encoder": _TEXT},
  ),
  "diffusers": Kind(
    "a Stable Diffusion folder in the diffusers layout",
    _has("unet/conv_in.weight"),
    {
      "unet": ("unet/", names.unet_diffusers),
      "autoencoder": ("vae/", names.autoencoder_diffusers),
      "text_encoder": ("text_encoder/", names.text_encoder_diffusers),
    },
  ),
  "stable_diffusion": Kind(
    "a Stable Diffusion model",
    _without(_has(_UNET_IN), _STRUCTURE_IN),
    {"unet": _UNET, "autoencoder": _FIRST_STAGE, "text_encoder": _TEXT},
  ),
  "real_esrgan": Kind(
    "a Real-ESRGAN generator",
    _has("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_up1.weight"),
    {"precleaner": ("", names.rrdbnet)},
  ),
  "lpips": Kind(
    "LPIPS with VGG16", _has("net.slice1.0.weight", "lin0.model.1.weight"), {"lpips": ("", names.lpips_whole)}
  ),
  "vgg16": Kind(
    "VGG16",
    # VGG16 with BatchNorm has no convolution 2, VGG19 none at 17.
    _has("features.0.weight", "features.2.weight", "features.17.weight", "features.28.weight"),
    {"lpips": ("", names.lpips)},
    (frozenset({"lpips_heads"}), "add LPIPS's linear heads, which the lpips package holds: weights/v0.1/vgg.pth"),
  ),
  "lpips_heads": Kind(
    "LPIPS's linear heads",
    _without(_has("lin0.model.1.weight", "lin4.model.1.weight"), "net.slice1.0.weight"),
    {"lpips": ("", names.lpips)},
    (frozenset({"vgg16"}), "add torchvision's VGG16: vgg16-397923af.pth"),
  ),
}

# Keys that no model needs, and why.
IGNORED = {
  r"(betas|(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|posterior_\w+|logvar|scale_factor)": (
    "schedule tables, computed anew"
  ),
  r"cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)": "parts of CLIP that no text embedding needs",
  r"(cond_stage_model\.model\.transformer\.resblocks|text_encoder/encoder\.layers)\.23\..*": (
    "the text tower's last layer, which is not used"
  ),
  r"(.*\.)?position_ids|text_encoder/text_projection.*": "parts of CLIP that no text embedding needs",
  r"loss\..*|first_stage_model\.loss\..*": "training losses",
  r"model_ema\..*": "averaged copies beside the weights",
  r"classifier\.[036]\.(weight|bias)": "VGG16's classifier, which LPIPS does not use",
  r"lins\.\d\.model\.1\.weight": "second names of the linear heads",
  r"scaling_layer\.(shift|scale)": "LPIPS's constants",
}

# What a checkpoint is that is of no known kind, by a part of a key.
_UNUSABLE = {
  "model_ema.": "has only averaged copies of the weights (model_ema.*), whose names have lost their dots; "
  "give the file with the weights themselves",
  "lora_": "is a LoRA, a change to the weights of another file; merge it into that file first",
}


@dataclasses.dataclass(frozen=True)
class Source:
  """An opened file or folder, to be closed, and what it is."""

  tensors: Tensors
  kind: str

  @property
  def path(self) -> pathlib.Path:
    return self.tensors.path

  def provenance(self) -> dict[str, str]:
    """For `model.json`: name, SHA-256 and kind (of a folder, the digest of its files' digests)."""
    digest = self.tensors.sha256() if isinstance(self.tensors, Joined) else sha256(self.path)
    return {"file": self.path.name, "sha256": digest, "kind": self.kind}

  def close(self) -> None:
    self.tensors.close()


def open_source(path: pathlib.Path) -> Source:
  """Opens a checkpoint (`open_checkpoint`) and recognises it.

  Raises:
    UserError: it cannot be read, or its keys are those of nothing known.
  """
  tensors: Tensors = open_checkpoint(path)
  for name, kind in KINDS.items():
    if kind.recognise(tensors):
      return Source(tensors, name)
  tensors.close()
  for part, what in _UNUSABLE.items():
    if any(part in name for name in tensors):
      raise UserError(f"{path}: {what}")
  first = ", ".join(list(tensors)[:3])
  raise UserError(f"{path}: not a kind of checkpoint that is known (its first keys: {first})")


def ignored_reason(key: str) -> str | None:
  """Why no model needs a key, or None."""
  return next((reason for pattern, reason in IGNORED.items() if re.fullmatch(pattern, key)), None)


def by_priority(sources: Sequence[Source]) -> list[Source]:
  """The sources in the order in which parts are taken from them.

  Raises:
    UserError: two of them are of one kind, or one is of no use without another that is not there.
  """
  order = list(KINDS)
  ordered = sorted(sources, key=lambda source: order.index(source.kind))
  for a, b in zip(ordered, ordered[1:], strict=False):
    if a.kind == b.kind:
      raise UserError(f"{a.path} and {b.path} are both {KINDS[a.kind].title}; give one of them")
  there = {source.kind for source in sources}
  for source in ordered:
    kind = KINDS[source.kind]
    if kind.completed_by and not kind.completed_by[0] & there:
      raise UserError(f"{source.path}: {kind.title}; {kind.completed_by[1]}")
  return ordered
