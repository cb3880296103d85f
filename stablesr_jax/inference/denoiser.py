"""Denoising of many tiles: time-aware encoder, SFT, UNet and guidance as one program, the sampler's step as another."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import ComputeConfig, ModelConfig
from stablesr_jax.diffusion.samplers import Steps, classifier_free_guidance, predicted_x0, step
from stablesr_jax.inference import memory, tiling
from stablesr_jax.inference.tiling import Sheet
from stablesr_jax.models.components import modules
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.models.unet import KeysValues
from stablesr_jax.parallel import batched, free_memory, replicated

# The most tiles that a device takes in one call. A CPU gains nothing from more than one.
_TILES_PER_DEVICE, _TILES_PER_CPU = 32, 1


class Conditions(NamedTuple):
  """What is computed once for a whole run, for a prompt, or a prompt and a negative one.

  Attributes:
    prompts: The prompts' keys and values for each UNet block, (1 or 2, N, heads, channels); None where it has no
      attention.
    guidance_scale: The s of eq. 8; used if there is a negative prompt.
  """

  prompts: list[KeysValues | None]
  guidance_scale: Float[Array, ""]


class Batch(NamedTuple):
  """Tiles that go through the network together: where they lie on a sheet, and which only fill the batch."""

  starts: Int[np.ndarray, "t 2"]
  used: Bool[np.ndarray, " t"]


class Denoiser:
  """The compiled networks of the diffusion."""

  def __init__(
    self,
    config: ModelConfig,
    params: Mapping[str, Params],
    compute: ComputeConfig,
    mesh: jax.sharding.Mesh,
    tile_batch: int | None = None,
    max_memory: float = math.inf,
  ):
    """Takes the parts "unet" and "time_aware_encoder" of `params`, as they are stored or from `winograd.prepare`.

    Args:
      tile_batch: The number of tiles in every call of the network; None chooses it for each call.
      max_memory: The bound in bytes of what is in use on each device.
    """
    parts = modules(config, compute)
    self._unet, self._encoder = parts["unet"], parts["time_aware_encoder"]
    self._params = {part: params[part] for part in ("unet", "time_aware_encoder")}
    self._config, self._mesh, self._compute = config, mesh, compute
    self._tile_batch = tile_batch and -(-tile_batch // mesh.size) * mesh.size
    self._max_memory, self._most = max_memory, math.inf
    self._condition = jax.jit(self._condition_impl)
    self._predict = jax.jit(self._predict_impl, compiler_options=compiler_options(compute.platform))

  def condition(self, prompts: Float[Array | np.ndarray, "p n c"], guidance_scale: float) -> Conditions:
    """Computes everything that does not change from step to step, for a prompt, or a prompt and a negative one."""
    return self._condition(self._params, prompts, jnp.float32(guidance_scale))

  def predict(
    self,
    x: Float[Array | np.ndarray, "n h w c"],
    lr: Float[Array | np.ndarray, "n h w c"],
    timestep: int | np.integer | Int[Array, ""],
    conditions: Conditions,
  ) -> Float[Array, "n h w c"]:
    """Evaluates the networks.

    Args:
      x: The noisy latents of tiles at a timestep of the forward process; n is a multiple of the mesh's devices.
      lr: The LR image's latents of the same tiles.

    Returns:
      The guided prediction (eps or v), float32.
    """
    return self._predict(self._params, x, lr, np.int32(timestep), conditions)

  def lower(self, x: jax.Array, lr: jax.Array, timestep: int, conditions: Conditions) -> jax.stages.Lowered:
    """The program that `predict` runs for these arguments, for a look at it."""
    return self._predict.lower(self._params, x, lr, np.int32(timestep), conditions)

  def _condition_impl(self, params, prompts, guidance_scale) -> Conditions:
    return Conditions(apply(self._unet, params["unet"], prompts, method="project_context"), guidance_scale)

  def _predict_impl(self, params, x, lr, timestep, conditions: Conditions) -> jax.Array:
    x, lr = (jax.lax.with_sharding_constraint(a, batched(self._mesh)) for a in (x, lr))
    structure = apply(self._encoder, params["time_aware_encoder"], lr, timestep[None])
    time = apply(self._unet, params["unet"], timestep[None], method="embed_time")
    denoise = lambda x, prompts, structure: apply(
      self._unet, params["unet"], x, time, prompts, structure, method="denoise"
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
    x: Float[Array, "h w c"],
    lr: Float[Array, "h w c"],
    sheet: Sheet,
    noise: Callable[[Any], jax.Array],
    steps: Steps,
    conditions: Conditions,
    *,
    reference: Float[Array, "h w c"] | None = None,
    progress: Callable[[int, int], object] | None = None,
    watch: Callable[[int, jax.Array], object] | None = None,
  ) -> Float[Array, "h w c"]:
    """Aggregation sampling (3.3): every canvas is one diffusion, whatever its size.

    At every step the tiles of all canvases go through the network, overlapping predictions are averaged, and the
    sampler moves whole canvases. A step is two dispatches for each batch of tiles.

    Args:
      x: Canvases on `sheet` at the first step's timestep, float32; its buffer is reused.
      lr: The LR images' latents on the sheet.
      noise: A pytree (as `jax.tree_util.Partial`) that gives for the number of a step standard normal noise (h, w, c).
      reference: The latents of reference pictures on the sheet, which guide the steps; None: there are none.
      progress: Called with (steps done, steps) as each step is finished; the next one is running then.
      watch: Called with (steps done, the canvases' predicted x0) before a step is finished; it costs another dispatch a
        step.

    Returns:
      The canvases at the end of the steps, on the sheet.
    """
    # Canvas-sized work is replicated: it is little, and every device then has what its tiles need.
    weights, norm, batches = tiling.gaussian_weights(*sheet.tile), sheet.weights, self.batches(sheet)
    x, lr, reference, noise, weights, norm, batches = jax.device_put(
      (x, lr, reference, noise, weights, norm, batches), replicated(self._mesh)
    )
    count = len(steps.timesteps)
    total, running = jnp.zeros_like(x), None
    tiles = _split(x, lr, batches[0].starts, tile=sheet.tile)
    for i in range(count):
      row = Steps(*(column[i] for column in steps))
      for batch, following in itertools.pairwise(batches):
        prediction = self.predict(tiles[0], tiles[1], row.timesteps, conditions)
        total, tiles = _next_batch(total, x, lr, prediction, batch, following.starts, weights)
      prediction = self.predict(tiles[0], tiles[1], row.timesteps, conditions)
      if watch is not None:
        watch(i + 1, _predicted_x0(x, total, prediction, batches[-1], weights, norm, row, reference))
      x, total, tiles, done = _next_step(
        x, total, lr, prediction, batches[-1], batches[0].starts, weights, norm, noise, np.int32(i), row, reference
      )
      if progress is not None:
        # The devices must never wait for what is told: only the step before is awaited.
        if running is not None:
          jax.block_until_ready(running)
          progress(i, count)
        running = done
    if progress is not None:
      jax.block_until_ready(x)
      progress(count, count)
    return x

  def batches(self, sheet: Sheet) -> list[Batch]:
    """The tiles of a sheet in batches of few sizes, the last one filled up with copies of its last tile."""
    found, first = [], 0
    for size in self._sizes(len(sheet.starts), math.prod(sheet.tile)):
      starts = sheet.starts[first : first + size]
      filled = np.concatenate([starts, np.repeat(starts[-1:], size - len(starts), axis=0)])
      found.append(Batch(filled, np.arange(size) < len(starts)))
      first += size
    return found

  def most_tiles(self, area: int) -> int:
    """How many tiles of so many latent pixels the network takes in one call, as far as the devices' memory allows."""
    if self._tile_batch:
      return int(min(self._tile_batch, self._most))
    if self._compute.platform == "cpu":
      return self._mesh.size * _TILES_PER_CPU
    need = memory.of_tile(self._config, area, self._compute)
    affordable = min(max(memory.SHARE * free_memory(self._mesh, self._max_memory) / need, 1), _TILES_PER_DEVICE)
    return int(min(self._mesh.size * 2 ** int(math.log2(affordable)), self._most))

  def halve(self, sheet: Sheet) -> bool:
    """From now on takes half as many tiles in a call as it took of this sheet; False where that was one a device."""
    devices, taken = self._mesh.size, max(len(batch.used) for batch in self.batches(sheet))
    if taken == devices:
      return False
    self._most = taken // devices // 2 * devices
    return True

  def _sizes(self, tiles: int, area: int) -> list[int]:
    """Powers of two tiles for each device: the largest, and for the rest few calls that are mostly filled."""
    most, devices = self.most_tiles(area), self._mesh.size
    if self._tile_batch:
      return [most] * -(-tiles // most)
    sizes = [most] * (tiles // most)
    rest = tiles % most
    while rest > 0:
      power = 2 ** math.ceil(math.log2(-(-rest // devices)))
      if rest < 0.75 * power * devices and power > 1:
        power //= 2
      sizes.append(power * devices)
      rest -= power * devices
    return sizes


# The tiles of a batch: of the noisy latents, and of the LR images'.
_Tiles = tuple[jax.Array, jax.Array]


@jax.jit(static_argnames="tile")
def _split(x: jax.Array, lr: jax.Array, starts: jax.Array, *, tile: tuple[int, int]) -> _Tiles:
  return tiling.split(x, starts, tile), tiling.split(lr, starts, tile)


@jax.jit(donate_argnums=0)
def _next_batch(
  total: jax.Array,
  x: jax.Array,
  lr: jax.Array,
  prediction: jax.Array,
  batch: Batch,
  following: jax.Array,
  weights: jax.Array,
) -> tuple[jax.Array, _Tiles]:
  """Adds a batch's prediction to the step's sum, and cuts out the tiles of the batch after it."""
  tile = weights.shape[0], weights.shape[1]
  return tiling.collect(total, prediction, *batch, weights), _split(x, lr, following, tile=tile)


@jax.jit(donate_argnums=(0, 1))
def _next_step(
  x: jax.Array,
  total: jax.Array,
  lr: jax.Array,
  prediction: jax.Array,
  batch: Batch,
  first: jax.Array,
  weights: jax.Array,
  norm: jax.Array,
  noise: Callable[[Any], jax.Array],
  number: jax.Array,
  coefficients: Steps,
  reference: jax.Array | None,
) -> tuple[jax.Array, jax.Array, _Tiles, jax.Array]:
  """All canvases one step further by the average of the tiles' predictions, and the first tiles of the step after it.

  Returns:
    The canvases, the next step's empty sum, the tiles that begin at `first`, and something to wait for.
  """
  tile = weights.shape[0], weights.shape[1]
  total = tiling.collect(total, prediction, *batch, weights)
  x = step(x, total / norm, noise(number), coefficients, reference)
  return x, jnp.zeros_like(total), _split(x, lr, first, tile=tile), x[0, 0, 0]


@jax.jit
def _predicted_x0(
  x: jax.Array,
  total: jax.Array,
  prediction: jax.Array,
  batch: Batch,
  weights: jax.Array,
  norm: jax.Array,
  coefficients: Steps,
  reference: jax.Array | None,
) -> jax.Array:
  """What `_next_step` with the same arguments goes by."""
  return predicted_x0(x, tiling.collect(total, prediction, *batch, weights) / norm, coefficients, reference)
