"""One denoising step of many tiles, compiled once: time-aware encoder, SFT, UNet, guidance, sampler."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import ComputeConfig, ModelConfig
from stablesr_jax.diffusion.samplers import Steps, guide, step
from stablesr_jax.inference import tiling
from stablesr_jax.models import winograd
from stablesr_jax.models.components import modules
from stablesr_jax.models.parameters import Params
from stablesr_jax.parallel import batched, replicated


class Conditions(NamedTuple):
  """What is computed once for a whole run. The prompts' leading axis is (prompt,) or (prompt, negative prompt).

  Attributes:
    unet_times, encoder_times: embeddings of every step's timestep, (S, T); the latter None without time-awareness.
    prompts: each UNet block's keys and values, (1 or 2, 1, 77, heads, channels).
    guidance_scale: s of eq. 8; used if there is a negative prompt.
  """

  unet_times: jax.Array
  encoder_times: jax.Array | None
  prompts: Any
  guidance_scale: jax.Array


class Denoiser:
  """The compiled networks of the diffusion.

  Attributes:
    params: the parameters of its parts. The trees are its own, the arrays in them the caller's; `prepare` takes those
      out of the trees that the networks then read no more.
    tile_batch: tiles in one call of the network, a multiple of the mesh's devices; fixed, so that pictures of any
      size run the same program. None: chosen at the first run and kept.
  """

  def __init__(
    self, config: ModelConfig, params: dict[str, Params], compute: ComputeConfig, mesh: jax.sharding.Mesh,
    tile_batch: int | None = None,
  ):  # fmt: skip
    parts: dict[str, Any] = modules(config, compute)
    self._unet, self._encoder = parts["unet"], parts["time_aware_encoder"]
    self.params = {part: unflatten_dict(flatten_dict(params[part])) for part in ("unet", "time_aware_encoder")}
    self._prepared = False
    self._params: dict[str, Any] = {part: {"params": tree} for part, tree in self.params.items()}
    self._mesh = mesh
    self.tile_batch = tile_batch and -(-tile_batch // mesh.size) * mesh.size
    self._condition = jax.jit(self._condition_impl)
    self._transform: Any = jax.jit(winograd.transform, static_argnames="enlarge", out_shardings=replicated(mesh))
    self._predict: Any = jax.jit(self._predict_impl, compiler_options=compiler_options())

  @property
  def compilations(self) -> int:
    """How many programs the networks were compiled into so far."""
    return self._predict._cache_size()

  def prepare(self, tile: int) -> None:
    """Computes what the layers derive from their parameters alone, where that pays (see `layers.Conv`).

    Done once, at the first run; runs with other tiles use the same. What it is derived from is dropped layer by layer,
    so that no more than one layer's parameters are there twice.

    Args:
      tile: in latent pixels.
    """
    if self._prepared:
      return
    # Only the layers know which of them prepare; computed one by one, alike layers share a program.
    wanted = jax.eval_shape(functools.partial(self._wanted, tile), self._params)
    for part, variables in self._params.items():
      for (*path, name), filters in flatten_dict(wanted[part]).items():
        layer, prepared = (
          functools.reduce(lambda tree, key: tree.setdefault(key, {}), path, variables.setdefault(collection, {}))
          for collection in ("params", "prepared")
        )
        if "kernel" in layer:  # else an interrupted call did this layer
          # Awaited, or the kernels of all layers would wait for their turn.
          enlarge = len(jax.tree.leaves(filters)) == 9
          prepared[name] = jax.block_until_ready(self._transform(layer["kernel"], enlarge=enlarge))
          del layer["kernel"]
    self._prepared = True

  def _wanted(self, tile: int, params) -> dict[str, Any]:
    c = self._unet.config
    t, latent, context = jnp.zeros(1), jnp.zeros((1, tile, tile, c.latent_channels)), jnp.zeros((1, 1, c.context_dim))
    apply = lambda part, module, *args: module.apply(params[part], *args, mutable=["prepared"])
    structure, encoder = apply("time_aware_encoder", self._encoder, latent, t)
    _, unet = apply("unet", self._unet, latent, t, context, structure)
    return {"unet": unet.get("prepared", {}), "time_aware_encoder": encoder.get("prepared", {})}

  def condition(self, steps: Steps, prompts: jax.Array, guidance_scale: float) -> Conditions:
    """Everything that does not change from step to step; `prompts` (1 or 2, 77, context_dim)."""
    return self._condition(self._params, jnp.asarray(steps.timesteps), prompts, jnp.float32(guidance_scale))

  def _condition_impl(self, params, timesteps, prompts, guidance_scale) -> Conditions:
    return Conditions(
      self._unet.apply(params["unet"], timesteps, method="embed_time"),
      self._encoder.apply(params["time_aware_encoder"], timesteps, method="embed_time"),
      jax.vmap(lambda prompt: self._unet.apply(params["unet"], prompt[None], method="project_context"))(prompts),
      guidance_scale,
    )

  def _predict_impl(self, params, x, lr, i, conditions: Conditions) -> jax.Array:
    """Tiles x, lr (N, tile, tile, 4) at step i -> the network's guided prediction, of the same shape."""
    x, lr = (jax.lax.with_sharding_constraint(a, batched(self._mesh)) for a in (x, lr))
    at = lambda table: jax.lax.dynamic_slice_in_dim(table, i, 1)
    time = None if conditions.encoder_times is None else at(conditions.encoder_times)
    structure = self._encoder.apply(params["time_aware_encoder"], lr, time, method="encode")
    denoise = lambda prompt: self._unet.apply(
      params["unet"], x, at(conditions.unet_times), prompt, structure, method="denoise"
    )
    if jax.tree.leaves(conditions.prompts)[0].shape[0] == 1:
      return denoise(jax.tree.map(lambda a: a[0], conditions.prompts))
    prediction, negative = jax.vmap(denoise)(conditions.prompts)
    return guide(prediction, negative, conditions.guidance_scale)

  def sample(
    self,
    latents: Sequence[jax.Array],
    lr_latents: Sequence[jax.Array],
    noise: Callable[[int, int], jax.Array],
    steps: Steps,
    conditions: Conditions,
    *,
    tile: int,
    overlap: int,
    progress: Callable[[int, int], None] | None = None,
  ) -> list[jax.Array]:
    """Aggregation sampling (3.3): every canvas is one diffusion, whatever its size.

    At every step the tiles of all canvases go through the network together, overlapping predictions are averaged,
    and the sampler moves whole canvases.

    Args:
      latents: K canvases (h_k, w_k, 4) float32 at the first step's timestep.
      lr_latents: the LR images' latents, of the same shapes.
      noise: (canvas k, step i) -> standard normal noise (h_k, w_k, 4).
      tile, overlap: in latent pixels.
      progress: called with (steps done, steps) as each step is finished.

    Returns:
      K canvases (h_k, w_k, 4).

    Raises:
      UserError: a canvas is smaller than a tile.
    """
    self.prepare(tile)
    # Canvas-sized work is replicated: it is little, and every device then has what its tiles need.
    place = functools.partial(jax.device_put, device=replicated(self._mesh))
    starts = [place(tiling.grid(x.shape[0], x.shape[1], tile, overlap)) for x in latents]
    weights = place(tiling.gaussian_weights(tile))
    batch = self._batch(sum(map(len, starts)))
    canvases = [place(x) for x in latents]
    lr_tiles = _chunks([tiling.split(place(lr), at, tile) for lr, at in zip(lr_latents, starts, strict=True)], batch)
    for i in range(len(steps.timesteps)):
      tiles = _chunks([tiling.split(x, at, tile) for x, at in zip(canvases, starts, strict=True)], batch)
      chunks = [
        self._predict(self._params, x, lr, jnp.int32(i), conditions) for x, lr in zip(tiles, lr_tiles, strict=True)
      ]
      predictions = _unchunk(chunks, [len(at) for at in starts])
      at_step = Steps(*(column[i] for column in steps))
      canvases = [
        _advance(x, place(prediction), at, weights, place(noise(k, i)), at_step)
        for k, (x, prediction, at) in enumerate(zip(canvases, predictions, starts, strict=True))
      ]
      if progress is not None:
        jax.block_until_ready(canvases)
        progress(i + 1, len(steps.timesteps))
    return canvases

  def _batch(self, tiles: int) -> int:
    if self.tile_batch is None:
      most = 1 if jax.default_backend() == "cpu" else 8  # a CPU gains nothing from larger batches
      each = -(-tiles // self._mesh.size)
      self.tile_batch = self._mesh.size * min(most, 1 << (each - 1).bit_length())
    return self.tile_batch


@jax.jit
def _advance(x, tiles, starts, weights, noise, at: Steps) -> jax.Array:
  prediction = tiling.aggregate(tiles, starts, weights, height=x.shape[0], width=x.shape[1])
  return step(x, prediction, noise, at)


def _chunks(tiles: list[jax.Array], batch: int) -> list[jax.Array]:
  """All tiles in batches of one size; the last one is filled up with copies of its last tile."""
  joined = jnp.concatenate(tiles) if len(tiles) > 1 else tiles[0]
  count = -(-len(joined) // batch)
  if pad := count * batch - len(joined):
    joined = jnp.concatenate([joined, jnp.repeat(joined[-1:], pad, axis=0)])
  return list(joined.reshape(count, batch, *joined.shape[1:]))


def _unchunk(chunks: list[jax.Array], counts: list[int]) -> list[jax.Array]:
  """The inverse of `_chunks`: each canvas's own tiles."""
  joined = jnp.concatenate(chunks) if len(chunks) > 1 else chunks[0]
  return [joined[end - count : end] for count, end in zip(counts, np.cumsum(counts), strict=True)]
