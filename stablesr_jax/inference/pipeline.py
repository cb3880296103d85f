"""The assembled system: load a converted model, enlarge and restore pictures of any size."""

import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stablesr_jax.checkpoints.store import EMBEDDED, NULL_PROMPT, Manifest, load_params, read_manifest
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.errors import UserError
from stablesr_jax.inference import memory
from stablesr_jax.inference.abilities import require_able, require_parts
from stablesr_jax.inference.output_size import OutputSize
from stablesr_jax.inference.picture_sizes import PictureSizes
from stablesr_jax.inference.pre_clean import PreCleaner
from stablesr_jax.inference.stages import Stages, Task, Tell
from stablesr_jax.models import winograd
from stablesr_jax.models.components import modules
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.models.tokenizer import tokenize
from stablesr_jax.parallel import compute_for, data_mesh, for_devices, free_memory, replicated
from stablesr_jax.pixels import Picture, like, to_float

Progress = Callable[[int, int], object]
Watch = Callable[[int, int, Float[np.ndarray, "_ _ 3"]], object]

# The share of the free memory that may be taken by what is kept from encoding to decoding.
_KEPT_FOR_DECODING = 0.25


class StableSR:
  """A loaded model.

  model = StableSR.load("models/stablesr_512")
  restored = model.upscale(Image.open("photo.jpg"), scale=4)

  Attributes:
    manifest: What the model's `model.json` says; `config` is its architecture.
    path: The folder that it was loaded from, or None.
  """

  def __init__(
    self,
    manifest: Manifest,
    params: Mapping[str, Params],
    *,
    compute: ComputeConfig = ComputeConfig(),
    mesh: jax.sharding.Mesh | None = None,
    tile_batch: int | None = None,
    autoencoder_tile: int | None = None,
    max_memory: int | None = None,
    model_path: str | os.PathLike | None = None,
  ):
    """Most callers want `load`.

    Args:
      params: The parts "unet", "time_aware_encoder", "autoencoder" and "null_prompt".
      mesh: The devices that share the work; by default all of this process.
      tile_batch: The number of tiles in every call of the network; by default chosen for each call, from 1 to 32 for
        each accelerator as its memory allows, and 1 on a CPU.
      autoencoder_tile: The side in pixels of the largest square that a device's autoencoder takes whole; larger
        pictures go through it in overlapping pieces of this size, so that memory does not grow with the picture. By
        default the largest of 128, 256, 384, 512, 768 and 1024 that needs no more than half of the free memory.
      max_memory: The bound in bytes of what is in use on each device; on a CPU, of the process. Tiles, batches and
        groups are chosen by it, and a picture that needs more is refused. It goes by estimates, without compiling.
      model_path: Where to find the text encoder when a prompt first needs it.
    """
    self.manifest, self.config = manifest, manifest.architecture
    require_parts(manifest)
    if tile_batch is not None and tile_batch < 1:
      raise UserError(f"tile-batch {tile_batch}: must be at least 1")
    self._mesh = mesh or data_mesh(jax.local_devices())
    self._compute, self.path = for_devices(compute, self._mesh), model_path
    self._max_memory = math.inf if max_memory is None else max_memory
    self._stages = Stages(
      self.config, params, self._compute, self._mesh, tile_batch, autoencoder_tile, self._max_memory
    )
    self.denoiser, self.autoencoder = self._stages.denoiser, self._stages.autoencoder
    self._prompts: dict[str, jax.Array] = {"": params[NULL_PROMPT]}

  @property
  def precision(self) -> str:
    """The dtype of the computation: float32 or bfloat16."""
    return self._compute.dtype

  @classmethod
  def load(
    cls,
    path: str | os.PathLike = EMBEDDED,
    *,
    manifest: Manifest | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    devices: Sequence[Any] | None = None,
    tile_batch: int | None = None,
    autoencoder_tile: int | None = None,
    max_memory: int | None = None,
  ) -> "StableSR":
    """Loads a converted model.

    Args:
      path: A folder written by `convert_weights.py` or `train.py`; by default the small model that ships with the
        package.
      manifest: What `read_manifest(path)` gave, if it was read already.
      precision: The dtype of the computation; "auto" is float32 on CPU and bfloat16 on GPU and TPU.
      devices: The devices that share the work; by default all of this process.
      tile_batch: As in `StableSR`.
      autoencoder_tile: As in `StableSR`.
      max_memory: As in `StableSR`.

    Raises:
      UserError: The folder is no converted model, or lacks a part; one line that names it.
    """
    manifest = manifest or read_manifest(path)
    if devices is not None and not devices:
      raise UserError("devices: must be at least one")
    mesh = data_mesh(jax.local_devices() if devices is None else devices)
    compute = compute_for(precision, mesh)
    parts = ["unet", "time_aware_encoder", "autoencoder", NULL_PROMPT]
    params = load_params(path, manifest, parts, dtype=compute.dtype, sharding=replicated(mesh))
    params |= {part: winograd.prepare(params[part], compute, donate=True) for part in ("unet", "time_aware_encoder")}
    return cls(
      manifest,
      params,
      compute=compute,
      mesh=mesh,
      tile_batch=tile_batch,
      autoencoder_tile=autoencoder_tile,
      max_memory=max_memory,
      model_path=path,
    )

  def upscale(
    self,
    image: Picture,
    *,
    scale: float | OutputSize = 4.0,
    seed: int | np.integer | Key[Array, ""] = 42,
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
    pre_cleaner: PreCleaner | None = None,
    reference: Picture | None = None,
    watch: Callable[[int, Picture], object] | None = None,
    watch_every: int = 1,
  ) -> Picture:
    """Enlarges and restores one picture.

    Args:
      image: A PIL image (made RGB), or an array (H, W, 3) of uint8, or of floats in [0, 1].
      scale: How much larger the sides become; below 1, smaller. Or an `OutputSize`.
      seed: An integer, or a `jax.random.key`. The result depends on it and the picture, not on batches or devices.
      sampling: As in `upscale_batch`.
      progress: As in `upscale_batch`.
      pre_cleaner: Cleans the picture first.
      reference: A picture of any size that guides the restoration, by `sampling.reference_weight`.
      watch: Called after steps with (steps done, the picture as the step has it, of the input's kind).
      watch_every: As in `upscale_batch`.

    Returns:
      The same kind as the input: PIL RGB, uint8, or float32 in [0, 1]; (round(scale H), round(scale W), 3) of a scale.

    Raises:
      UserError: The picture's shape, type or range, the scale, or an option is wrong, or the result is not finite.
    """
    key = jax.random.key(seed) if isinstance(seed, int | np.integer) else seed
    pixels = to_float(image)
    [restored] = self.upscale_batch(
      [pre_cleaner.clean(pixels) if pre_cleaner else pixels],
      scale=scale,
      keys=[key],
      sampling=sampling,
      progress=progress,
      references=None if reference is None else [to_float(reference)],
      watch=watch and (lambda _, done, picture: watch(done, like(picture, image))),
      watch_every=watch_every,
    )
    return like(restored, image)

  def upscale_batch(
    self,
    images: Sequence[np.ndarray],
    *,
    scale: float | OutputSize,
    keys: Sequence[Key[Array, ""]],
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
    references: Sequence[np.ndarray] | None = None,
    watch: Watch | None = None,
    watch_every: int = 1,
    tell: Tell | None = None,
  ) -> list[Float[np.ndarray, "_ _ 3"]]:
    """Enlarges and restores pictures of any sizes together: their tiles fill the same batches.

    Args:
      images: Pictures (H, W, 3), float32 in [0, 1].
      scale: As in `upscale`.
      keys: A `jax.random.key` for each picture.
      sampling: The settings of the sampling; by default the model's own.
      progress: Called with (steps done, steps).
      references: Pictures (H, W, 3) of any sizes, float32 in [0, 1], one for each, to which the steps are drawn by
        `sampling.reference_weight` (see `samplers.plan`); None: there are none.
      watch: Called after steps with (the picture's number, steps done, the picture): the step's x0, decoded and
        corrected as the result is. It costs a decoding each.
      watch_every: After how many steps `watch` is called; after the last one it is.
      tell: Called with a line, once each, if memory ran out and was enough for less at once, or if half precision did
        not suffice and a stage was done again in float32; by default a warning.

    Returns:
      (round(scale H), round(scale W), 3) float32 in [0, 1] for each, of a scale; otherwise `OutputSize.of` it.

    Raises:
      UserError: As `upscale`.
    """
    sampling = sampling or self.manifest.sampling
    self.check(sampling)
    if len(keys) != len(images):
      raise UserError(f"{len(images)} images, but {len(keys)} keys: must be as many")
    if references is not None and len(references) != len(images):
      raise UserError(f"{len(images)} images, but {len(references)} references: must be as many")
    if watch_every < 1:
      raise UserError(f"watch-every {watch_every}: must be at least 1")
    if not images:
      return []
    sizes = [self._sizes(np.shape(image), scale, sampling) for image in images]
    self._stages.fit(sizes)
    numbered = {number: _require_floats(image) for number, image in enumerate(images)}
    guides = None if references is None else {number: _require_floats(each) for number, each in enumerate(references)}
    shapes = sorted({own.tile for own in sizes})
    results: dict[int, np.ndarray] = {}
    for nth, shape in enumerate(shapes):
      alike = {number: own for number, own in enumerate(sizes) if own.tile == shape}
      told = progress and functools.partial(_tell_part, progress, nth, len(shapes))
      task = self._stages.task(alike, numbered, dict(enumerate(keys)), sampling, tell or _warn)
      results |= self._restore(task, guides, told, watch, watch_every)
    return [results[number] for number in range(len(images))]

  def _restore(
    self,
    task: Task,
    references: Mapping[int, np.ndarray] | None,
    progress: Progress | None,
    watch: Watch | None,
    watch_every: int,
  ) -> dict[int, np.ndarray]:
    """Restores the pictures of a task, of which all have references or none."""
    stages = self._stages
    reference = None if references is None else stages.encode(task.of_references(references))[0]
    low, kept = stages.encode(task)

    def show(done: int, x0: jax.Array) -> None:
      if watch is not None and (done % watch_every == 0 or done == task.sampling.steps):
        for number, picture in stages.decode(task, x0, kept, mend=False):
          watch(number, done, picture)

    prompts = self._embed(self._prompts_of(task.sampling))
    x = stages.sample(task, low, prompts, reference, progress, show if watch is not None else None)
    del low, reference  # they may be large
    return dict(stages.decode(task, x, kept))

  def check(self, sampling: SamplingConfig) -> None:
    """Raises UserError if this model cannot do what the settings ask for."""
    # Without a folder there is none to load the text encoder from.
    config = self.config if self.path is not None else dataclasses.replace(self.config, text_encoder=None)
    require_able(config, sampling, self._prompts)

  def has_room(self, sizes: Sequence[tuple[int, int]], *, scale: float | OutputSize, sampling: SamplingConfig) -> bool:
    """Whether pictures of these sizes (height, width) leave the devices room for another, restored together with them.

    Together they are worth it until their tiles fill a call of the network; what the decoder needs of the encoder must
    fit into a part of the devices' memory.
    """
    found = [self._sizes((*size, 3), scale, sampling) for size in sizes]
    tiles = sum(own.count_tiles(sampling) for own in found)
    pixels = sum(math.prod(own.frame) for own in found)
    kept = pixels * memory.of_pixel(self.autoencoder.config, self._compute)
    enough = tiles >= self.denoiser.most_tiles(sampling.tile_size**2)
    return not enough and kept < _KEPT_FOR_DECODING * self._mesh.size * free_memory(self._mesh, self._max_memory)

  def _sizes(self, shape: tuple[int, ...], scale: float | OutputSize, sampling: SamplingConfig) -> PictureSizes:
    return PictureSizes.of(shape, scale, sampling, self.autoencoder.config.downsampling)

  def _prompts_of(self, sampling: SamplingConfig) -> list[str]:
    """The prompt, and behind it the negative prompt where guidance needs it."""
    return [sampling.prompt] + ([sampling.negative_prompt] if sampling.guidance_scale != 1 else [])

  def _embed(self, prompts: Sequence[str]) -> jax.Array:
    """The embeddings of prompts (P, N, C), computed once for each."""
    if missing := [prompt for prompt in prompts if prompt not in self._prompts]:
      assert self.path is not None
      params = load_params(self.path, self.manifest, ["text_encoder"], sharding=replicated(self._mesh))
      encoder = modules(self.config, ComputeConfig(platform=self._compute.platform))["text_encoder"]
      embed = jax.jit(lambda params, tokens: apply(encoder, params, tokens))
      self._prompts |= dict(
        zip(missing, embed(params["text_encoder"], tokenize(missing, self.config.context_length)), strict=True)
      )
    return jnp.stack([self._prompts[prompt] for prompt in prompts])


def _require_floats(image: np.ndarray) -> np.ndarray:
  if isinstance(image, np.ndarray) and image.dtype != np.uint8:
    return to_float(image)
  kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
  raise UserError(f"image of {kind}: expected an array of floats in [0, 1]")


def _tell_part(progress: Progress, part: int, parts: int, done: int, steps: int) -> None:
  """Tells of the steps of one of several parts as of steps of the whole."""
  progress((part * steps + done) // parts, steps)


def _warn(message: str) -> None:
  warnings.warn(message, RuntimeWarning, stacklevel=2)
