"""Converts published PyTorch checkpoints into one model of ours."""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from stablesr_jax import config as configs
from stablesr_jax.checkpoints import names
from stablesr_jax.checkpoints.joined import DiffusersFolder
from stablesr_jax.checkpoints.layout import to_ours
from stablesr_jax.checkpoints.ncnn import without_pairs
from stablesr_jax.checkpoints.sources import KINDS, Source, by_priority, ignored_reason, open_source
from stablesr_jax.checkpoints.store import (
  LPIPS_PART,
  NULL_PROMPT,
  LPIPSManifest,
  Manifest,
  ModelWriter,
  StoredDtype,
  as_stored,
  require_replaceable,
)
from stablesr_jax.config import LPIPSConfig, ModelConfig, Prediction, RRDBNetConfig, SamplingConfig
from stablesr_jax.errors import UserError
from stablesr_jax.models import lpips
from stablesr_jax.models.components import COMPONENTS, abstract_params, modules
from stablesr_jax.models.parameters import Params, flat
from stablesr_jax.models.tokenizer import tokenize

Report = Callable[[str], None]


def convert(
  inputs: Sequence[pathlib.Path],
  output: pathlib.Path,
  *,
  architecture: ModelConfig | None = None,
  prediction: Prediction | None = None,
  dtype: StoredDtype = "float32",
  allow_nonfinite: bool = False,
  report: Report = print,
) -> Manifest | LPIPSManifest:
  """Combines checkpoints into one converted model, or LPIPS's two files into a folder of its own.

  Every tensor of the inputs is used, or named in the report as left out; every parameter of the model is filled.

  Args:
    inputs: files and diffusers folders, in any order. One of ncnn's two files, `.param` and `.bin`, is enough.
    output: the folder to write; it appears only when complete.
    architecture: sizes; by default the named architecture that fits the tensors' shapes.
    prediction: what the UNet predicts; by default as a diffusers folder's scheduler says, otherwise v for a file
      with "768" in its name and eps for any other.
    dtype: of the stored parameters: float32, bfloat16 or float16.
    allow_nonfinite: keeps NaN and infinity that are in a file; otherwise they are an error.
    report: is given one line at a time.

  Raises:
    UserError: an input cannot be read or is nothing known, two are of one kind, a tensor has the wrong shape, is of
      integers or 8-bit floats, or has values that are not finite or beyond the dtype's range, a parameter remains
      unfilled, LPIPS's files are among a model's, or at `output` is
      something else than a converted model, or one that an input lies in.
  """
  require_replaceable(output)
  for path in inputs:
    if os.path.realpath(output) in map(str, pathlib.Path(os.path.realpath(path)).parents):
      raise UserError(f"{path}: lies in the output, {output}, which would be replaced; choose another output")
  with contextlib.ExitStack() as opened:
    sources = by_priority(
      [opened.enter_context(contextlib.closing(open_source(path))) for path in without_pairs(inputs)]
    )
    for source in sources:
      report(f"{source.path.name}: {KINDS[source.kind].title}")
    return _convert(sources, output, architecture, prediction, _Storing(dtype, allow_nonfinite), report)


@dataclasses.dataclass(frozen=True)
class _Storing:
  """How parameters are stored: the arguments of `as_stored`."""

  dtype: StoredDtype
  allow_nonfinite: bool


def _convert(
  sources: Sequence[Source],
  output: pathlib.Path,
  architecture: ModelConfig | None,
  prediction: Prediction | None,
  storing: _Storing,
  report: Report,
) -> Manifest | LPIPSManifest:
  if any(LPIPS_PART in KINDS[source.kind].parts for source in sources):
    if architecture is not None or prediction is not None:
      raise UserError("LPIPS has neither an architecture nor a prediction to choose")
    return _convert_lpips(sources, output, storing, report)
  config = describe(sources, architecture)
  config = dataclasses.replace(
    config,
    diffusion=dataclasses.replace(config.diffusion, prediction=prediction or _guess_prediction(sources)),
  )
  used: dict[pathlib.Path, set[str]] = {source.path: set() for source in sources}
  plans = {
    part: _plan(part, getattr(config, part), abstract_params(config, part), sources)
    for part in COMPONENTS
    if getattr(config, part) is not None
  }
  with ModelWriter(output) as writer:
    for part, plan in plans.items():
      params = _fill(plan, storing, used, report)
      if part == "text_encoder":
        writer.write(NULL_PROMPT, {NULL_PROMPT: _null_prompt(config, params)})
      writer.write(part, params)
      _report_size(part, params, report)
      del params
    if config.text_encoder is None and config.unet is not None:
      report("no text encoder in the inputs: the null prompt's embedding is zeros, and prompts cannot be used")
      writer.write(NULL_PROMPT, {NULL_PROMPT: np.zeros((config.context_length, config.unet.context_dim), np.float32)})
    for source in sources:
      _report_left_out(source, used[source.path], report)
    manifest = Manifest(
      name=next((s for s in sources if s.kind.startswith("stablesr")), sources[0]).path.stem,
      architecture=config,
      sampling=_sampling_defaults(sources, config),
      dtype=storing.dtype,
      sources=tuple(source.provenance() for source in sources),
    )
    writer.commit(manifest)
  for part in ("unet", "time_aware_encoder", "autoencoder"):
    if getattr(config, part) is None:
      report(f"note: without a {part.replace('_', ' ')} this model cannot restore pictures yet")
  return manifest


def _convert_lpips(sources: Sequence[Source], output: pathlib.Path, storing: _Storing, report: Report) -> LPIPSManifest:
  for source in sources:
    if LPIPS_PART not in KINDS[source.kind].parts:
      raise UserError(f"{source.path}: {KINDS[source.kind].title}; LPIPS has a folder of its own, convert it alone")
  name_map = KINDS[sources[0].kind].parts[LPIPS_PART][1](LPIPSConfig())
  [first] = names.leaf_names(name_map, "stage_0/conv_0/kernel")  # what the first source is recognised by, too
  config = LPIPSConfig(width=sources[0].tensors.shape(first)[0])
  used: dict[pathlib.Path, set[str]] = {source.path: set() for source in sources}
  plan = _plan(LPIPS_PART, config, lpips.abstract_params(config), sources)
  with ModelWriter(output) as writer:
    params = _fill(plan, storing, used, report)
    writer.write(LPIPS_PART, params)
    _report_size(LPIPS_PART, params, report)
    for source in sources:
      _report_left_out(source, used[source.path], report)
    provenance = tuple(source.provenance() for source in sources)
    manifest = LPIPSManifest(name="lpips-vgg16", lpips=config, dtype=storing.dtype, sources=provenance)
    writer.commit(manifest)
  return manifest


def describe(sources: Sequence[Source], architecture: ModelConfig | None = None) -> ModelConfig:
  """The architecture that the sources together have: the sizes of a named one, the parts that are there.

  Raises:
    UserError: no named architecture fits.
  """

  default = ModelConfig(precleaner=RRDBNetConfig())

  def find(component: str, module: str) -> tuple[int, ...] | None:
    """The shape of a layer's weight in the first source that has it."""
    for source in sources:
      if component in KINDS[source.kind].parts:
        prefix, name_map = KINDS[source.kind].parts[component]
        sizes = getattr(architecture or default, component) or getattr(default, component)
        key = name_map(sizes).get(module)
        if isinstance(key, str) and f"{prefix}{key}.weight" in source.tensors:
          return source.tensors.shape(f"{prefix}{key}.weight")
    return None

  conv_in = {
    "unet": find("unet", "conv_in"),
    "time_aware_encoder": find("time_aware_encoder", "conv_in"),
    "autoencoder": find("autoencoder", "encoder/conv_in"),
  }
  if architecture is None:
    architecture = next((named for make in configs.NAMED.values() if _fits(named := make(), conv_in)), None)
  if architecture is None:
    sizes = ", ".join(f"{part} {shape[0]}" for part, shape in conv_in.items() if shape)
    raise UserError(f"no named architecture has these channels ({sizes}); give --architecture model.json")

  unet, autoencoder = architecture.unet, architecture.autoencoder
  if unet is not None and find("unet", "middle_0/residual/sft/gamma") is None and unet.conditioning == "sft":
    unet = dataclasses.replace(unet, conditioning="none")
  if autoencoder is not None:
    cfw = find("autoencoder", "decoder/cfw_1/residual_in/conv1") is not None
    autoencoder = dataclasses.replace(autoencoder, cfw=cfw)
  precleaner = None
  if (first := find("precleaner", "conv_first")) and (dense := find("precleaner", "body_0/dense1/conv1")):
    source = next(source for source in sources if source.kind == "real_esrgan")
    blocks = len({key.split(".")[1] for key in source.tensors if key.startswith("body.")})
    precleaner = RRDBNetConfig(features=first[0], blocks=blocks, growth=dense[0])
  has_text = find("text_encoder", "token_embedding") is not None
  return dataclasses.replace(
    architecture,
    unet=unet if conv_in["unet"] or find("unet", "middle_0/residual/sft/gamma") else None,
    time_aware_encoder=architecture.time_aware_encoder if conv_in["time_aware_encoder"] else None,
    autoencoder=autoencoder if conv_in["autoencoder"] or (autoencoder and autoencoder.cfw) else None,
    text_encoder=(architecture.text_encoder or configs.TextEncoderConfig()) if has_text else None,
    precleaner=precleaner,
  )


def _fits(config: ModelConfig, conv_in: dict[str, tuple[int, ...] | None]) -> bool:
  """Whether the first convolutions that were found have this architecture's channels."""
  return all(shape is None or getattr(config, part).channels == shape[0] for part, shape in conv_in.items())


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """One parameter and the tensors that fill it."""

  shape: tuple[int, ...]
  source: Source
  keys: tuple[str, ...]


def _plan(part: str, sizes: Any, abstract: Params, sources: Sequence[Source]) -> dict[str, _Leaf]:
  """Where each parameter of a part comes from; all shapes are checked before anything is read.

  Args:
    sizes: the part's config.
    abstract: the part's parameters as shapes.
  """
  candidates = []
  for source in sources:
    if part in KINDS[source.kind].parts:
      prefix, name_map = KINDS[source.kind].parts[part]
      candidates.append((source, prefix, name_map(sizes)))
  plan, missing = {}, []
  for path, leaf in flat(abstract).items():
    for source, prefix, name_map in candidates:
      try:
        keys = tuple(prefix + name for name in names.leaf_names(name_map, path))
      except KeyError:  # this layout has no such layer (CFW in a Stable Diffusion file)
        continue
      if all(key in source.tensors for key in keys):
        _check_kind(source, keys)
        _check_shape(source, keys, path, leaf.shape)
        plan[path] = _Leaf(leaf.shape, source, keys)
        break
    else:
      missing.append(_published_name(candidates, path))
  if missing:
    raise UserError(
      f"{', '.join(str(source.path) for source, *_ in candidates)}: {part} lacks {len(missing)} of "
      f"{len(missing) + len(plan)} tensors (first: {missing[0]})"
    )
  return plan


def _published_name(candidates: Sequence[tuple[Source, str, names.Names]], path: str) -> str:
  for _, prefix, name_map in candidates:
    try:
      return prefix + names.leaf_names(name_map, path)[0]
    except KeyError:
      continue
  return path


def _check_kind(source: Source, keys: tuple[str, ...]) -> None:
  """Raises UserError if a tensor holds no weights as they are: quantised ones are lost without their scales."""
  for key in keys:
    dtype = source.tensors.dtype(key)
    if dtype.name not in ("float16", "bfloat16", "float32", "float64"):
      raise UserError(
        f"{source.path}: {key} is {dtype.name}, not 16, 32 or 64-bit floats: quantised weights are not read; get the "
        "file they were made from"
      )


def _check_shape(source: Source, keys: tuple[str, ...], path: str, shape: tuple[int, ...]) -> None:
  """Raises UserError if the tensors cannot become a parameter of `shape`, without reading them."""
  leaf = path.rpartition("/")[2]
  shapes = [source.tensors.shape(key) for key in keys]
  joined = (sum(s[0] for s in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]
  try:
    to_ours(np.broadcast_to(np.float32(0), joined), leaf, shape)
  except ValueError as error:
    raise UserError(f"{source.path}: {keys[0]} {error}: not a model of this architecture") from error


def _fill(plan: dict[str, _Leaf], storing: _Storing, used: dict[pathlib.Path, set[str]], report: Report) -> Params:
  params = {}
  for path, leaf in plan.items():
    tensors = [leaf.source.tensors.read(key) for key in leaf.keys]
    tensor = np.concatenate(tensors) if len(tensors) > 1 else tensors[0]
    value = to_ours(tensor, path.rpartition("/")[2], leaf.shape)
    name = f"{leaf.source.path}: {leaf.keys[0]}"
    params[path] = as_stored(value, storing.dtype, name, allow_nonfinite=storing.allow_nonfinite)
    if storing.allow_nonfinite and not np.isfinite(params[path]).all():
      report(f"{name} has values that are not finite; they are kept")
    used[leaf.source.path].update(leaf.keys)
  return unflatten_dict(params, sep="/")


def _null_prompt(config: ModelConfig, params: Params) -> np.ndarray:
  """The embedding of "" (context_length, width) float32, so that inference without a prompt needs no text encoder."""
  encoder = modules(config)["text_encoder"]
  params = jax.tree.map(lambda a: a.astype(np.float32), params)
  return np.asarray(jax.jit(encoder.apply)({"params": params}, tokenize([""], config.context_length))[0])


def _report_size(part: str, params: Params, report: Report) -> None:
  report(f"{part}: {sum(a.size for a in jax.tree.leaves(params)) / 1e6:.1f} M parameters")


def _report_left_out(source: Source, used: set[str], report: Report) -> None:
  """Names what was not used, in groups with a reason each."""
  groups = collections.defaultdict(list)
  known = {prefix: part for part, (prefix, _) in KINDS[source.kind].parts.items()}
  for key in source.tensors:
    if key not in used:
      part = next((part for prefix, part in known.items() if prefix and key.startswith(prefix)), None)
      groups[ignored_reason(key) or (f"{part}: taken from another file" if part else "unknown")].append(key)
  for reason, keys in groups.items():
    shown = ", ".join(keys) if len(keys) <= 4 or reason == "unknown" else f"{keys[0]}, ... {keys[-1]}"
    report(f"{source.path.name}: left out {len(keys)} ({reason}): {shown}")


def _guess_prediction(sources: Sequence[Source]) -> Prediction:
  for source in sources:
    if isinstance(source.tensors, DiffusersFolder) and (said := source.tensors.prediction()):
      return "v" if said == "v" else "eps"
  return "v" if any("768" in source.path.name for source in sources if source.kind != "cfw") else "eps"


def _sampling_defaults(sources: Sequence[Source], config: ModelConfig) -> SamplingConfig:
  """The settings that a published model was made for."""
  sampling = SamplingConfig()
  if any("768" in source.path.name for source in sources):
    sampling = dataclasses.replace(sampling, tile_size=96, fidelity_weight=0.0)  # no CFW was trained for it
  if any("turbo" in source.path.name.lower() for source in sources):
    sampling = dataclasses.replace(sampling, steps=4)
  if config.autoencoder is not None and not config.autoencoder.cfw:
    sampling = dataclasses.replace(sampling, fidelity_weight=0.0)
  return sampling
