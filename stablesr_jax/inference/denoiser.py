"""One denoising step of many tiles, compiled once: time-aware encoder, SFT, UNet, guidance, sampler."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import ComputeConfig, ModelConfig
from stablesr_jax.diffusion.samplers import Steps, classifier_free_guidance, step
from stablesr_jax.inference import tiling
from stablesr_jax.models.components import modules
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.models.unet import KeysValues
from stablesr_jax.parallel import batched, replicated

# The most tiles that a device takes in one call. A CPU gains nothing from more than one.
_TILES_PER_DEVICE, _TILES_PER_CPU = 8, 1


class Conditions(NamedTuple):
  """What is computed once for a whole run, for a prompt, or a prompt and a negative one.

  Attributes:
    unet_times: The UNet's embedding of every step's timestep.
    encoder_times: The time-aware encoder's; None if it is not time-aware.
    prompts: The prompts' keys and values for each UNet block, (1 or 2, N, heads, channels); None where it has no
      attention.
    guidance_scale: The s of eq. 8; used if there is a negative prompt.
  """

  unet_times: Float[Array, "s t"]
  encoder_times: Float[Array, "s u"] | None
  prompts: list[KeysValues | None]
  guidance_scale: Float[Array, ""]


class Denoiser:
  """The compiled networks of the diffusion.

  Attributes:
    tile_batch: The number of tiles in one call of the network, a multiple of the mesh's devices; fixed, so that
      pictures of any size run the same program. None: chosen at the first run and kept.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: Mapping[str, Params],
    compute: ComputeConfig,
    mesh: jax.sharding.Mesh,
    tile_batch: int | None = None,
  ):
    """Takes the parts "unet" and "time_aware_encoder" of `params`, as they are stored or from `winograd.prepare`."""
    parts = modules(config, compute)
    self._unet, self._encoder = parts["unet"], parts["time_aware_encoder"]
    self._params = {part: params[part] for part in ("unet", "time_aware_encoder")}
    self._mesh, self._platform = mesh, compute.platform
    self.tile_batch = tile_batch and -(-tile_batch // mesh.size) * mesh.size
    self._condition = jax.jit(self._condition_impl)
    self._predict = jax.jit(self._predict_impl, compiler_options=compiler_options(compute.platform))

  def condition(self, steps: Steps, prompts: Float[Array | np.ndarray, "p n c"], guidance_scale: float) -> Conditions:
    """Computes everything that does not change from step to step, for a prompt, or a prompt and a negative one."""
    return self._condition(self._params, jnp.asarray(steps.timesteps), prompts, jnp.float32(guidance_scale))

  def predict(
    self,
    x: Float[Array | np.ndarray, "n h w c"],
    lr: Float[Array | np.ndarray, "n h w c"],
    i: int,
    conditions: Conditions,
  ) -> Float[Array, "n h w c"]:
    """Evaluates the networks.

    Args:
      x: The noisy latents of tiles at step i; n is a multiple of the mesh's devices.
      lr: The LR image's latents of the same tiles.
      i: The number of the step among those that `conditions` was made for.

    Returns:
      The guided prediction (eps or v), float32.
    """
    return self._predict(self._params, x, lr, jnp.int32(i), conditions)

  def lower(self, x: jax.Array, lr: jax.Array, i: int, conditions: Conditions) -> jax.stages.Lowered:
    """The program that `predict` runs for these arguments, for a look at it."""
    return self._predict.lower(self._params, x, lr, jnp.int32(i), conditions)

  def _condition_impl(self, params, timesteps, prompts, guidance_scale) -> Conditions:
    return Conditions(
      apply(self._unet, params["unet"], timesteps, method="embed_time"),
      apply(self._encoder, params["time_aware_encoder"], timesteps, method="embed_time"),
      apply(self._unet, params["unet"], prompts, method="project_context"),
      guidance_scale,
    )

  def _predict_impl(self, params, x, lr, i, conditions: Conditions) -> jax.Array:
    x, lr = (jax.lax.with_sharding_constraint(a, batched(self._mesh)) for a in (x, lr))
    row = lambda table: jax.lax.dynamic_slice_in_dim(table, i, 1)
    time = None if conditions.encoder_times is None else row(conditions.encoder_times)
    structure = apply(self._encoder, params["time_aware_encoder"], lr, time, method="encode")
    denoise = lambda x, prompts, structure: apply(
      self._unet, params["unet"], x, row(conditions.unet_times), prompts, structure, method="denoise"
    )
    if len(jax.tree.leaves(conditions.prompts)[0]) == 1:
      return denoise(x, conditions.prompts, structure)
    # Every tile is in the batch twice, once for each prompt: kernels of attention know no axis before the batch's. Side
    # by side, so that a device keeps the tiles that it has.
    twice = lambda tree: jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), tree)
    alternating = jax.tree.map(lambda a: jnp.tile(a, (len(x), 1, 1, 1)), conditions.prompts)
    predictions = denoise(twice(x), alternating, twice(structure)).reshape(len(x), 2, *x.shape[1:])
    return classifier_free_guidance(predictions[:, 0], predictions[:, 1], conditions.guidance_scale)

  def sample(
    self,
    latents: Sequence[Float[Array | np.ndarray, "_ _ c"]],
    lr_latents: Sequence[Float[Array | np.ndarray, "_ _ c"]],
    noise: Callable[[int, int], jax.Array],
    steps: Steps,
    conditions: Conditions,
    *,
    tile: int,
    overlap: int,
    progress: Callable[[int, int], object] | None = None,
  ) -> list[Float[Array, "_ _ c"]]:
    """Aggregation sampling (3.3): every canvas is one diffusion, whatever its size.

    At every step the tiles of all canvases go through the network together, overlapping predictions are averaged,
    and the sampler moves whole canvases.

    Args:
      latents: K canvases (h_k, w_k, 4) float32 at the first step's timestep.
      lr_latents: The LR images' latents, of the same shapes.
      noise: Gives for (canvas k, step i) standard normal noise (h_k, w_k, 4).
      tile: The side of a tile in latent pixels.
      overlap: How many latent pixels of a tile its neighbour has, too.
      progress: Called with (steps done, steps) as each step is finished.

    Returns:
      K canvases (h_k, w_k, 4).

    Raises:
      ValueError: A canvas is smaller than a tile.
    """
    # Canvas-sized work is replicated: it is little, and every device then has what its tiles need.
    place = functools.partial(jax.device_put, device=replicated(self._mesh))
    grids = [place(tiling.grid(x.shape[0], x.shape[1], tile, overlap)) for x in latents]
    weights = place(tiling.gaussian_weights(tile))
    batch = self._choose_tile_batch(sum(map(len, grids)))
    canvases = [place(x) for x in latents]
    split = functools.partial(_split, grids=grids, tile=tile, batch=batch)
    lr_tiles = split([place(lr) for lr in lr_latents])
    for i in range(len(steps.timesteps)):
      predictions = [self.predict(x, lr, i, conditions) for x, lr in zip(split(canvases), lr_tiles, strict=True)]
      noises = [place(noise(k, i)) for k in range(len(canvases))]
      coefficients = Steps(*(column[i] for column in steps))
      canvases = _advance(canvases, place(predictions), grids, weights, noises, coefficients)
      if progress is not None:
        jax.block_until_ready(canvases)
        progress(i + 1, len(steps.timesteps))
    return canvases

  def _choose_tile_batch(self, tiles: int) -> int:
    if self.tile_batch is None:
      limit = _TILES_PER_CPU if self._platform == "cpu" else _TILES_PER_DEVICE
      each = -(-tiles // self._mesh.size)
      self.tile_batch = self._mesh.size * min(limit, 1 << (each - 1).bit_length())
    return self.tile_batch


@functools.partial(jax.jit, static_argnames=("tile", "batch"))
def _split(canvases: Sequence[jax.Array], *, grids: Sequence[jax.Array], tile: int, batch: int) -> list[jax.Array]:
  """The tiles of all canvases in batches of one size; the last one is filled up with copies of its last tile."""
  tiles = jnp.concatenate([tiling.split(x, grid, tile) for x, grid in zip(canvases, grids, strict=True)])
  count = -(-len(tiles) // batch)
  filled = jnp.concatenate([tiles, jnp.repeat(tiles[-1:], count * batch - len(tiles), axis=0)])
  return list(filled.reshape(count, batch, *tiles.shape[1:]))


@jax.jit
def _advance(
  canvases: Sequence[jax.Array],
  predictions: Sequence[jax.Array],
  grids: Sequence[jax.Array],
  weights: jax.Array,
  noises: Sequence[jax.Array],
  coefficients: Steps,
) -> list[jax.Array]:
  """All canvases one step further, by the predictions for batches of tiles as `_split` made them."""
  tiles, first, results = jnp.concatenate(predictions), 0, []
  for x, grid, noise in zip(canvases, grids, noises, strict=True):
    own = tiles[first : first + len(grid)]
    prediction = tiling.aggregate(own, grid, weights, height=x.shape[0], width=x.shape[1])
    results.append(step(x, prediction, noise, coefficients))
    first += len(grid)
  return results
