"""Writes a converted model in the published PyTorch layout, for other tools."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from stablesr_jax.checkpoints import names
from stablesr_jax.checkpoints.layout import to_pytorch
from stablesr_jax.checkpoints.safetensors_writer import Entry, write_safetensors
from stablesr_jax.checkpoints.store import load_params, read_manifest
from stablesr_jax.config import ModelConfig
from stablesr_jax.diffusion import schedule
from stablesr_jax.errors import UserError
from stablesr_jax.models.parameters import flat

_PREFIXES = {
  "unet": ("model.diffusion_model.", names.unet),
  "time_aware_encoder": ("structcond_stage_model.", names.time_aware_encoder),
  "autoencoder": ("first_stage_model.", names.autoencoder),
  "text_encoder": ("cond_stage_model.model.", names.text_encoder),
}
# Layers that PyTorch holds as convolutions with a 1x1 (or, over a sequence, 1) kernel where we have dense layers.
_CONVOLUTION_2D = re.compile(r"first_stage_model\.\w+\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
_CONVOLUTION_1D = re.compile(r"structcond_stage_model\..*\.(qkv|proj_out)\.weight")
_CFW = re.compile(r"first_stage_model\.decoder\.fusion_layer_")


def export(model: pathlib.Path, output: pathlib.Path, *, dtype: str = "float32") -> list[pathlib.Path]:
  """Writes `output`, a StableSR file, and if the model has CFW, the autoencoder with it as `*_cfw.safetensors`.

  The text tower's last layer, which is not used and not kept, is written as zeros so that strict loaders accept
  the file.

  Args:
    model: a converted model's folder.
    output: a `.safetensors` file; keys as in the published checkpoints, without the level `state_dict`.
    dtype: of the tensors.

  Returns:
    The files written.

  Raises:
    UserError: the folder is no converted model, or `output` is not a .safetensors file.
  """
  if output.suffix != ".safetensors":
    raise UserError(f"{output}: give a file name that ends in .safetensors")
  manifest = read_manifest(model)
  config, target = manifest.architecture, np.dtype(dtype)
  entries = []
  for part in _PREFIXES:
    if getattr(config, part) is not None:
      tree = load_params(model, manifest, [part], dtype=manifest.dtype)[part]
      entries += _part_entries(config, part, tree, target)
  wrapped = [entry for entry in entries if _CFW.match(entry.name)]
  entries = [entry for entry in entries if not _CFW.match(entry.name)]
  unused = _unused_text_entries(config, target) if config.text_encoder is not None else []
  write_safetensors(output, [*_schedule_entries(config), *entries, *unused])
  if not wrapped:
    return [output]
  cfw, prefix = output.with_name(f"{output.stem}_cfw.safetensors"), _PREFIXES["autoencoder"][0]
  whole = [entry for entry in [*entries, *wrapped] if entry.name.startswith(prefix)]
  write_safetensors(cfw, [entry._replace(name=entry.name.removeprefix(prefix)) for entry in whole])
  return [output, cfw]


def _part_entries(config: ModelConfig, part: str, tree: Any, target: np.dtype) -> Iterator[Entry]:
  prefix, name_map = _PREFIXES[part]
  modules = name_map(getattr(config, part))
  for path, value in flat(tree).items():
    leaf = path.rpartition("/")[2]
    [name] = (prefix + name for name in names.leaf_names(modules, path))
    ones = (1, 1) if _CONVOLUTION_2D.fullmatch(name) else (1,) if _CONVOLUTION_1D.fullmatch(name) else ()
    shape = (*to_pytorch(np.broadcast_to(np.float32(0), value.shape), leaf).shape, *ones)
    read = lambda value=value, leaf=leaf, shape=shape: to_pytorch(np.asarray(value), leaf).reshape(shape)
    yield Entry(name, shape, target, read)


def _unused_text_entries(config: ModelConfig, target: np.dtype) -> Iterator[Entry]:
  """The text tower's last layer and CLIP's projection, which the embedding does not need."""
  text = config.text_encoder
  assert text is not None
  c = text.width
  layer = {
    "ln_1.weight": (c,),
    "ln_1.bias": (c,),
    "attn.in_proj_weight": (3 * c, c),
    "attn.in_proj_bias": (3 * c,),
    "attn.out_proj.weight": (c, c),
    "attn.out_proj.bias": (c,),
    "ln_2.weight": (c,),
    "ln_2.bias": (c,),
    "mlp.c_fc.weight": (4 * c, c),
    "mlp.c_fc.bias": (4 * c,),
    "mlp.c_proj.weight": (c, 4 * c),
    "mlp.c_proj.bias": (c,),
  }
  shapes = {f"transformer.resblocks.{text.layers}.{name}": shape for name, shape in layer.items()}
  shapes |= {"text_projection": (c, c), "logit_scale": ()}
  for name, shape in shapes.items():
    yield Entry(_PREFIXES["text_encoder"][0] + name, shape, target, lambda shape=shape: np.zeros(shape, np.float32))


def _schedule_entries(config: ModelConfig) -> Iterator[Entry]:
  """The tables that the published files carry, (steps,) float32."""
  betas = schedule.betas(config.diffusion)
  alphas_cumprod = np.cumprod(1 - betas)
  previous = np.append(1.0, alphas_cumprod[:-1])
  variance = betas * (1 - previous) / (1 - alphas_cumprod)
  tables = {
    "betas": betas,
    "alphas_cumprod": alphas_cumprod,
    "alphas_cumprod_prev": previous,
    "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
    "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas_cumprod),
    "log_one_minus_alphas_cumprod": np.log(1 - alphas_cumprod),
    "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas_cumprod),
    "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas_cumprod - 1),
    "posterior_variance": variance,
    "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
    "posterior_mean_coef1": betas * np.sqrt(previous) / (1 - alphas_cumprod),
    "posterior_mean_coef2": (1 - previous) * np.sqrt(1 - betas) / (1 - alphas_cumprod),
  }
  for name, table in tables.items():
    yield Entry(name, table.shape, np.dtype(np.float32), lambda table=table: table)
