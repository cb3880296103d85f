"""What restoring a picture needs of a device's memory: estimates that choose sizes, held against XLA's own account."""

import math
from collections.abc import Sequence

import jax

from stablesr_jax.config import AutoencoderConfig, ComputeConfig, ModelConfig
from stablesr_jax.inference.picture_sizes import PictureSizes
from stablesr_jax.models import winograd
from stablesr_jax.models.components import abstract_params
from stablesr_jax.models.parameters import Params
from stablesr_jax.parallel import compute_for, free_memory

# Sides in pixels of the autoencoder's pieces, of which the largest that the memory allows is taken.
AUTOENCODER_TILES = (128, 256, 384, 512, 768, 1024)
# The share of the free memory that the intermediate results of one program may take.
SHARE = 0.5
# What a tile's activations need at most, in arrays of the first level's size; the compiled programs say so.
_ARRAYS_OF_A_TILE = 32
# Beyond what XLA counts: what lies between programs, and buffers that its allocator cannot fit together.
_MARGIN = 1.25
# Scores of attention (see `models.attention`), on accelerators and on a CPU.
_SCORES, _CPU_SCORES = 1 << 28, 1 << 23
# Arrays of a latent's size: while it is encoded, sampled and decoded.
_LATENTS = 4, 7, 2
_FLOAT = 4
# On a CPU, as measured: Python and JAX; the programs, and what compiles them.
_PROCESS, _PROGRAMS = 350 * 2**20, 250 * 2**20
_PARTS = ("unet", "time_aware_encoder", "autoencoder")


def of_autoencoder(config: AutoencoderConfig, area: int, platform: str | None) -> float:
  """The bytes of the intermediate results of encoding or decoding so many pixels.

  By XLA's account the most is in the decoder, when features of the second level's width have all pixels: 3 arrays of
  the first level's width where the second is as wide, 5 where it is twice as wide. In half precision a CPU computes in
  float32.
  """
  second = config.channel_multipliers[min(1, len(config.channel_multipliers) - 1)]
  features = (1 + 2 * second) * area * config.channels * _FLOAT
  scores = (_CPU_SCORES if platform == "cpu" else _SCORES) if config.attention else 0
  return _MARGIN * features + scores


def of_tile(config: ModelConfig, area: int, compute: ComputeConfig) -> float:
  """The bytes of the intermediate results of the denoising networks, for a tile of so many latent pixels."""
  assert config.unet is not None
  return _ARRAYS_OF_A_TILE * area * config.unet.channels * compute.jax_dtype.itemsize


def of_picture(
  config: ModelConfig, compute: ComputeConfig, sizes: PictureSizes, autoencoder_tile: int, tile_batch: int = 1
) -> float:
  """The most bytes that restoring a picture alone takes of each device at any time, beside the parameters.

  On a CPU that includes what is on the host.
  """
  assert config.autoencoder is not None
  frame, latent, tile, pixels = (math.prod(sides) for sides in (sizes.frame, sizes.latent, sizes.tile, sizes.canvas))
  at_once = min(frame, compute.devices * autoencoder_tile**2)
  networks = of_autoencoder(config.autoencoder, at_once // compute.devices, compute.platform)
  kept = frame / compute.devices * of_pixel(config.autoencoder, compute) if at_once == frame else 0
  host = 3 * pixels * _FLOAT if compute.platform == "cpu" else 0
  latents = latent * config.autoencoder.latent_channels * _FLOAT
  encoding, sampling, decoding = (count * latents + kept for count in _LATENTS)
  tiles = tile_batch * of_tile(config, tile, compute)
  # While a picture is written, its pixels in few bits and its file lie beside their floats.
  programs = _PROGRAMS if compute.platform == "cpu" else 0
  return programs + max(encoding + networks, sampling + tiles, decoding + networks + host, 1.5 * host)


def of_pixel(config: AutoencoderConfig, compute: ComputeConfig) -> float:
  """The bytes for each pixel of what is kept of a picture that goes through whole, until it is decoded: CFW's features,
  and the enlarged picture."""
  inner = range(1, len(config.channel_multipliers) - 1) if config.cfw else ()
  features = sum(config.channels * config.channel_multipliers[level] / 4**level for level in inner)
  return features * compute.jax_dtype.itemsize + 3 * _FLOAT


def chosen_tile(config: AutoencoderConfig, compute: ComputeConfig, free: float) -> int:
  """The largest of AUTOENCODER_TILES whose need leaves room for the rest, or the smallest one."""
  fitting = [side for side in AUTOENCODER_TILES if of_autoencoder(config, side**2, compute.platform) <= SHARE * free]
  return fitting[-1] if fitting else AUTOENCODER_TILES[0]


def of_run(
  config: ModelConfig,
  precision: str,
  mesh: jax.sharding.Mesh,
  pictures: Sequence[PictureSizes],
  *,
  tile_batch: int | None,
  autoencoder_tile: int | None,
  max_memory: int | None,
) -> float:
  """About the most bytes of each device that restoring pictures one by one takes, with the parameters, and on a CPU
  with the program itself; the arguments are those of `StableSR`."""
  assert config.autoencoder is not None
  compute = compute_for(precision, mesh)
  own = sum(
    leaf.size * leaf.dtype.itemsize for part in _PARTS for leaf in jax.tree.leaves(_stored(config, part, compute))
  )
  own += _PROCESS if compute.platform == "cpu" else 0
  free = free_memory(mesh, math.inf if max_memory is None else max_memory)
  tile = autoencoder_tile or chosen_tile(config.autoencoder, compute, free)
  return own + max(of_picture(config, compute, sizes, tile, tile_batch or 1) for sizes in pictures)


def _stored(config: ModelConfig, part: str, compute: ComputeConfig) -> Params:
  """The shapes and dtypes of a part's parameters as they are computed with."""
  params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, compute.jax_dtype), abstract_params(config, part))
  return params if part == "autoencoder" else jax.eval_shape(lambda params: winograd.prepare(params, compute), params)
