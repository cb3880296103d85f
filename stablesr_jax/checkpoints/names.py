"""Which tensor of a PyTorch checkpoint fills which module: the name maps, as data.

A map leads from the path of one of our modules ("down_0_0/residual/conv1") to the name of the same layer in a
checkpoint ("input_blocks.1.0.in_layers.2"). Where another layout splits what is one layer here, the value is a
tuple, joined along the output axis. A layer's leaves follow from `LEAVES`.
"""

from collections.abc import Callable

from stablesr_jax.config import (
  AutoencoderConfig,
  LPIPSConfig,
  RRDBNetConfig,
  TextEncoderConfig,
  TimeAwareEncoderConfig,
  UNetConfig,
)

Names = dict[str, str | tuple[str, ...]]

# Our leaf -> the leaf's name in PyTorch.
LEAVES = {"kernel": ".weight", "scale": ".weight", "embedding": ".weight", "bias": ".bias"}

_OPENAI_RESIDUAL = {
  "norm1": "in_layers.0",
  "conv1": "in_layers.2",
  "time": "emb_layers.1",
  "norm2": "out_layers.0",
  "conv2": "out_layers.3",
  "skip": "skip_connection",
  "sft/norm": "spade.param_free_norm",
  "sft/shared": "spade.mlp_shared.0",
  "sft/gamma": "spade.mlp_gamma",
  "sft/beta": "spade.mlp_beta",
}
_DIFFUSERS_RESIDUAL = {
  "norm1": "norm1",
  "conv1": "conv1",
  "time": "time_emb_proj",
  "norm2": "norm2",
  "conv2": "conv2",
  "skip": "conv_shortcut",
}
_COMPVIS_RESIDUAL = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "skip": "nin_shortcut"}
_CFW_RESIDUAL = _COMPVIS_RESIDUAL | {"skip": "conv_out"}
_TRANSFORMER = {
  "norm": "norm",
  "proj_in": "proj_in",
  "norm1": "transformer_blocks.0.norm1",
  "norm2": "transformer_blocks.0.norm2",
  "norm3": "transformer_blocks.0.norm3",
  "self_attention/q": "transformer_blocks.0.attn1.to_q",
  "self_attention/k": "transformer_blocks.0.attn1.to_k",
  "self_attention/v": "transformer_blocks.0.attn1.to_v",
  "self_attention/out": "transformer_blocks.0.attn1.to_out.0",
  "cross_attention/q": "transformer_blocks.0.attn2.to_q",
  "cross_attention/k": "transformer_blocks.0.attn2.to_k",
  "cross_attention/v": "transformer_blocks.0.attn2.to_v",
  "cross_attention/out": "transformer_blocks.0.attn2.to_out.0",
  "feed_forward/widen": "transformer_blocks.0.ff.net.0.proj",
  "feed_forward/out": "transformer_blocks.0.ff.net.2",
  "proj_out": "proj_out",
}
_ENCODER_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
_PIXEL_ATTENTION = {"norm": "norm", "q": "q", "k": "k", "v": "v", "out": "proj_out"}
_DIFFUSERS_PIXEL_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_DENSE_BLOCK = {f"conv{i}": f"conv{i}" for i in range(1, 6)}
# The convolutions' places in torchvision's list of VGG16's layers, by stage.
_VGG16 = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def _join(ours: str, theirs: str, names: Names | dict[str, str]) -> Names:
  """The map of a part, both its sides prefixed."""
  prefixed = lambda value: f"{theirs}{value}" if isinstance(value, str) else tuple(f"{theirs}{v}" for v in value)
  return {f"{ours}{key}": prefixed(value) for key, value in names.items()}


def unet(config: UNetConfig) -> Names:
  """The UNet in the CompVis (and the published StableSR) layout."""
  names: Names = {
    "time_embedding/dense1": "time_embed.0",
    "time_embedding/dense2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
  }

  def add(ours: str, theirs: str, attend: bool):
    names.update(_join(f"{ours}/residual/", f"{theirs}.0.", _OPENAI_RESIDUAL))
    if attend:
      names.update(_join(f"{ours}/transformer/", f"{theirs}.1.", _TRANSFORMER))

  n, levels = config.blocks_per_level, len(config.channel_multipliers)
  for level in range(levels):
    attend = level in config.attention_levels
    first = 1 + level * (n + 1)
    for i in range(n):
      add(f"down_{level}_{i}", f"input_blocks.{first + i}", attend)
    if level < levels - 1:
      names[f"downsample_{level}/conv"] = f"input_blocks.{first + n}.0.op"
    first = (levels - 1 - level) * (n + 1)
    for i in range(n + 1):
      add(f"up_{level}_{i}", f"output_blocks.{first + i}", attend)
    if level:
      names[f"upsample_{level - 1}/conv"] = f"output_blocks.{first + n}.{2 if attend else 1}.conv"
  names |= _join("middle_0/residual/", "middle_block.0.", _OPENAI_RESIDUAL)
  names |= _join("middle_0/transformer/", "middle_block.1.", _TRANSFORMER)
  names |= _join("middle_1/residual/", "middle_block.2.", _OPENAI_RESIDUAL)
  return names


def unet_diffusers(config: UNetConfig) -> Names:
  """The UNet in the diffusers layout."""
  names: Names = {
    "time_embedding/dense1": "time_embedding.linear_1",
    "time_embedding/dense2": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
  }

  def add(ours: str, theirs: str, i: int, attend: bool):
    names.update(_join(f"{ours}/residual/", f"{theirs}.resnets.{i}.", _DIFFUSERS_RESIDUAL))
    if attend:
      names.update(_join(f"{ours}/transformer/", f"{theirs}.attentions.{i}.", _TRANSFORMER))

  n, levels = config.blocks_per_level, len(config.channel_multipliers)
  for level in range(levels):
    attend = level in config.attention_levels
    up = levels - 1 - level
    for i in range(n):
      add(f"down_{level}_{i}", f"down_blocks.{level}", i, attend)
    for i in range(n + 1):
      add(f"up_{level}_{i}", f"up_blocks.{up}", i, attend)
    if level < levels - 1:
      names[f"downsample_{level}/conv"] = f"down_blocks.{level}.downsamplers.0.conv"
    if level:
      names[f"upsample_{level - 1}/conv"] = f"up_blocks.{up}.upsamplers.0.conv"
  add("middle_0", "mid_block", 0, True)
  add("middle_1", "mid_block", 1, False)
  return names


def time_aware_encoder(config: TimeAwareEncoderConfig) -> Names:
  """The time-aware encoder in the published layout."""
  names: Names = {
    "time_embedding/dense1": "time_embed.0",
    "time_embedding/dense2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
  }

  def add(ours: str, residual: str, attention: str | None):
    names.update(_join(f"{ours}/residual/", f"{residual}.", _OPENAI_RESIDUAL))
    if attention:
      names.update(_join(f"{ours}/attention/", f"{attention}.", _ENCODER_ATTENTION))

  n, levels = config.blocks_per_level, len(config.channel_multipliers)
  for level in range(levels):
    first = 1 + level * (n + 1)
    for i in range(n):
      block = f"input_blocks.{first + i}"
      add(f"down_{level}_{i}", f"{block}.0", f"{block}.1" if level in config.attention_levels else None)
    if level < levels - 1:
      names[f"downsample_{level}/conv"] = f"input_blocks.{first + n}.0.op"
    names |= _join(f"out_{level}/", f"fea_tran.{level}.", _OPENAI_RESIDUAL)
  add("middle_0", "middle_block.0", "middle_block.1")
  add("middle_1", "middle_block.2", None)
  return names


def autoencoder(config: AutoencoderConfig) -> Names:
  """The autoencoder in the CompVis layout, CFW as the published file names it."""
  names: Names = {"encoder/quant": "quant_conv", "decoder/post_quant": "post_quant_conv"}
  last = len(config.channel_multipliers) - 1
  for half in ("encoder", "decoder"):
    names |= {f"{half}/{name}": f"{half}.{name}" for name in ("conv_in", "norm_out", "conv_out")}
    names |= _join(f"{half}/middle/residual_0/", f"{half}.mid.block_1.", _COMPVIS_RESIDUAL)
    names |= _join(f"{half}/middle/attention/", f"{half}.mid.attn_1.", _PIXEL_ATTENTION)
    names |= _join(f"{half}/middle/residual_1/", f"{half}.mid.block_2.", _COMPVIS_RESIDUAL)
  for level in range(last + 1):
    for i in range(config.blocks_per_level):
      names |= _join(f"encoder/down_{level}_{i}/", f"encoder.down.{level}.block.{i}.", _COMPVIS_RESIDUAL)
    for i in range(config.blocks_per_level + 1):
      names |= _join(f"decoder/up_{level}_{i}/", f"decoder.up.{level}.block.{i}.", _COMPVIS_RESIDUAL)
    if level < last:
      names[f"encoder/downsample_{level}/conv"] = f"encoder.down.{level}.downsample.conv"
    if level:
      names[f"decoder/upsample_{level}/conv"] = f"decoder.up.{level}.upsample.conv"
    if config.cfw and 0 < level < last:
      ours, theirs = f"decoder/cfw_{level}/", f"decoder.fusion_layer_{level}."
      names |= _join(f"{ours}residual_in/", f"{theirs}encode_enc_1.", _CFW_RESIDUAL)
      for i in range(config.cfw_blocks):
        names |= _rrdb(f"{ours}rrdb_{i}/", f"{theirs}encode_enc_2.{i}.")
      names |= _join(f"{ours}residual_out/", f"{theirs}encode_enc_3.", _CFW_RESIDUAL)
  return names


def autoencoder_diffusers(config: AutoencoderConfig) -> Names:
  """The autoencoder in the diffusers layout, which has no CFW."""
  names: Names = {"encoder/quant": "quant_conv", "decoder/post_quant": "post_quant_conv"}
  last = len(config.channel_multipliers) - 1
  for half in ("encoder", "decoder"):
    names |= {f"{half}/{ours}": f"{half}.{ours}" for ours in ("conv_in", "conv_out")}
    names[f"{half}/norm_out"] = f"{half}.conv_norm_out"
    for i in range(2):
      names |= _join(f"{half}/middle/residual_{i}/", f"{half}.mid_block.resnets.{i}.", _DIFFUSERS_RESIDUAL)
    names |= _join(f"{half}/middle/attention/", f"{half}.mid_block.attentions.0.", _DIFFUSERS_PIXEL_ATTENTION)
  for level in range(last + 1):
    up = last - level
    for i in range(config.blocks_per_level):
      names |= _join(f"encoder/down_{level}_{i}/", f"encoder.down_blocks.{level}.resnets.{i}.", _DIFFUSERS_RESIDUAL)
    for i in range(config.blocks_per_level + 1):
      names |= _join(f"decoder/up_{level}_{i}/", f"decoder.up_blocks.{up}.resnets.{i}.", _DIFFUSERS_RESIDUAL)
    if level < last:
      names[f"encoder/downsample_{level}/conv"] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
    if level:
      names[f"decoder/upsample_{level}/conv"] = f"decoder.up_blocks.{up}.upsamplers.0.conv"
  return names


def text_encoder(config: TextEncoderConfig) -> Names:
  """The text tower in the OpenCLIP layout."""
  names: Names = {
    "": "positional_embedding",
    "token_embedding": "token_embedding",
    "norm_out": "ln_final",
  }
  for i in range(config.layers):
    layer = {
      "norm1": "ln_1",
      "qkv": "attn.in_proj_",
      "out": "attn.out_proj",
      "norm2": "ln_2",
      "widen": "mlp.c_fc",
      "narrow": "mlp.c_proj",
    }
    names |= _join(f"layer_{i}/", f"transformer.resblocks.{i}.", layer)
  return names


def text_encoder_diffusers(config: TextEncoderConfig) -> Names:
  """The text tower in the transformers layout (`text_encoder/` of a diffusers folder)."""
  names: Names = {
    "": "embeddings.position_embedding.weight",
    "token_embedding": "embeddings.token_embedding",
    "norm_out": "final_layer_norm",
  }
  for i in range(config.layers):
    layer: Names = {
      "norm1": "layer_norm1",
      "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
      "out": "self_attn.out_proj",
      "norm2": "layer_norm2",
      "widen": "mlp.fc1",
      "narrow": "mlp.fc2",
    }
    names |= _join(f"layer_{i}/", f"encoder.layers.{i}.", layer)
  return names


def rrdbnet(config: RRDBNetConfig) -> Names:
  """Real-ESRGAN's generator."""
  layers = ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last")
  names: Names = {layer: layer for layer in layers}
  for i in range(config.blocks):
    names |= _rrdb(f"body_{i}/", f"body.{i}.")
  return names


def lpips(config: LPIPSConfig) -> Names:
  """LPIPS in two files: torchvision's VGG16, and the linear heads that the lpips package ships."""
  return _lpips(lambda stage: "features.")


def lpips_whole(config: LPIPSConfig) -> Names:
  """LPIPS as the lpips package's own module with VGG16 is saved."""
  return _lpips(lambda stage: f"net.slice{stage + 1}.")


def _lpips(prefix: Callable[[int], str]) -> Names:
  names: Names = {}
  for stage, places in enumerate(_VGG16):
    names |= {f"stage_{stage}/conv_{i}": f"{prefix(stage)}{place}" for i, place in enumerate(places)}
    names[f"head_{stage}"] = f"lin{stage}.model.1"
  return names


def _rrdb(ours: str, theirs: str) -> Names:
  names: Names = {}
  for i in range(1, 4):
    names |= _join(f"{ours}dense{i}/", f"{theirs}rdb{i}.", _DENSE_BLOCK)
  return names


def leaf_names(names: Names, path: str) -> tuple[str, ...]:
  """The source tensors of one leaf, e.g. "conv_in/kernel" -> ("input_blocks.0.0.weight",).

  Raises:
    KeyError: the map does not know the leaf's module.
  """
  module, _, leaf = path.rpartition("/")
  value = names[module]
  parts = (value,) if isinstance(value, str) else value
  if leaf == "positional_embedding":  # a bare tensor, not a layer
    return parts
  # PyTorch's attention calls its joint projection in_proj_weight, without a dot.
  return tuple(part + LEAVES[leaf].removeprefix("." if part.endswith("_") else "") for part in parts)
