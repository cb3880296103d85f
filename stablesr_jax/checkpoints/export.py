"""Writes a converted model in the published PyTorch layout, for other tools."""

import pathlib
import re

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from stablesr_jax.checkpoints import names
from stablesr_jax.checkpoints.layout import to_pytorch
from stablesr_jax.checkpoints.sources import KINDS
from stablesr_jax.checkpoints.store import StoredDtype, as_stored, load_params, read_manifest
from stablesr_jax.config import ModelConfig, TextEncoderConfig
from stablesr_jax.diffusion import schedule
from stablesr_jax.errors import UserError, first_line
from stablesr_jax.files import atomic_write, make_folder
from stablesr_jax.models.parameters import Params, flat

# Our parts in the published file: the prefix of their keys, and their name map.
_PARTS = KINDS["stablesr"].parts
# Layers that PyTorch holds as convolutions with a 1x1 (or, over a sequence, 1) kernel where we have dense layers.
_CONVOLUTION_2D = re.compile(r"first_stage_model\.\w+\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
_CONVOLUTION_1D = re.compile(r"structcond_stage_model\..*\.(qkv|proj_out)\.weight")
_CFW = re.compile(r"first_stage_model\.decoder\.fusion_layer_")


def export(
  model: pathlib.Path, output: pathlib.Path, *, dtype: StoredDtype = "float32", allow_nonfinite: bool = False
) -> list[pathlib.Path]:
  """Writes `output`, a StableSR file, and if the model has CFW, the autoencoder with it as `*_cfw.safetensors`.

  The text tower's last layer, which is not used and not kept, is written as zeros so that strict loaders accept
  the file.

  Args:
    model: a converted model's folder.
    output: a `.safetensors` file; keys as in the published checkpoints, without the level `state_dict`.
    dtype: of the tensors.
    allow_nonfinite: writes NaN and infinity, too.

  Returns:
    The files written.

  Raises:
    UserError: the folder is no converted model, a parameter is not finite or beyond the dtype's range, or `output` is
      not a .safetensors file.
  """
  if output.suffix != ".safetensors":
    raise UserError(f"{output}: give a file name that ends in .safetensors")
  manifest = read_manifest(model)
  config, target = manifest.architecture, np.dtype(dtype)
  tensors = _schedule_tables(config)
  for part in _PARTS:
    if getattr(config, part) is not None:
      tree = load_params(model, manifest, [part], dtype=manifest.dtype)[part]
      for name, value in _published(config, part, tree).items():
        tensors[name] = as_stored(value, dtype, f"{model}: {name}", allow_nonfinite=allow_nonfinite)
      del tree  # before the next part is read
  if config.text_encoder is not None:
    tensors |= {name: np.zeros(shape, target) for name, shape in _unused_text_tensors(config.text_encoder).items()}
  _save({name: value for name, value in tensors.items() if not _CFW.match(name)}, output)
  if not any(map(_CFW.match, tensors)):
    return [output]
  cfw, (prefix, _) = output.with_name(f"{output.stem}_cfw.safetensors"), _PARTS["autoencoder"]
  _save({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}, cfw)
  return [output, cfw]


def _save(tensors: dict[str, np.ndarray], path: pathlib.Path) -> None:
  """Writes a safetensors file, whole or not at all. The library takes the arrays as they are, without copying them."""
  try:
    make_folder(path.parent)
    with atomic_write(path) as temporary:
      save_file(tensors, temporary)
  except (OSError, SafetensorError) as error:
    raise UserError(f"{path}: cannot be written ({first_line(error)})") from error


def _published(config: ModelConfig, part: str, tree: Params) -> dict[str, np.ndarray]:
  """A part's tensors under their published names, in PyTorch's layout and the stored dtype."""
  prefix, name_map = _PARTS[part]
  modules, tensors = name_map(getattr(config, part)), {}
  for path, value in flat(tree).items():
    [name] = (prefix + name for name in names.leaf_names(modules, path))
    ones = (1, 1) if _CONVOLUTION_2D.fullmatch(name) else (1,) if _CONVOLUTION_1D.fullmatch(name) else ()
    value = to_pytorch(np.asarray(value), path.rpartition("/")[2])
    tensors[name] = value.reshape(*value.shape, *ones)
  return tensors


def _unused_text_tensors(text: TextEncoderConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the text tower's last layer and CLIP's projection, which the embedding does not need."""
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
  return {_PARTS["text_encoder"][0] + name: shape for name, shape in shapes.items()}


def _schedule_tables(config: ModelConfig) -> dict[str, np.ndarray]:
  """The tables that the published files carry, (steps,) float32 in every file."""
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
  return {name: table.astype(np.float32) for name, table in tables.items()}
