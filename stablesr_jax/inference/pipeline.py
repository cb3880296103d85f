"""The assembled system: load a converted model, enlarge and restore pictures of any size."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from stablesr_jax.checkpoints.store import EMBEDDED, NULL_PROMPT, Manifest, load_params, read_manifest
from stablesr_jax.config import ComputeConfig, ModelConfig, SamplingConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.diffusion.schedule import add_noise
from stablesr_jax.errors import UserError
from stablesr_jax.inference import color, frames, tiling
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.inference.output_size import OutputSize, output_size
from stablesr_jax.inference.pre_clean import PreCleaner
from stablesr_jax.inference.tiled_autoencoder import TiledAutoencoder
from stablesr_jax.inference.tiling import Sheet
from stablesr_jax.models import winograd
from stablesr_jax.models.components import modules
from stablesr_jax.models.kl_autoencoder import posterior, sample_posterior
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.models.tokenizer import tokenize
from stablesr_jax.parallel import data_mesh, for_devices, free_memory, platform, replicated
from stablesr_jax.pixels import Picture, like, to_float

Progress = Callable[[int, int], object]
Watch = Callable[[int, int, Float[np.ndarray, "_ _ 3"]], object]

# The share of the free memory that may be taken by what is kept from encoding to decoding.
_KEPT_FOR_DECODING = 0.25
# The image's key is split by purpose, so that none of them depends on how often the others draw.
_POSTERIOR, _START, _STEPS = 0, 1, 2


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
    autoencoder_tile: int = 1024,
    model_path: str | os.PathLike | None = None,
  ):
    """Most callers want `load`.

    Args:
      params: The parts "unet", "time_aware_encoder", "autoencoder" and "null_prompt".
      mesh: The devices that share the work; by default all of this process.
      tile_batch: The number of tiles in every call of the network; by default chosen for each call, from 1 to 32 for
        each accelerator as its memory allows, and 1 on a CPU.
      autoencoder_tile: The side in pixels of the largest square that a device's autoencoder takes whole; larger
        pictures go through it in overlapping pieces of this size, so that memory does not grow with the picture.
      model_path: Where to find the text encoder when a prompt first needs it.
    """
    self.manifest, self.config = manifest, manifest.architecture
    for part in ("unet", "time_aware_encoder", "autoencoder"):
      if getattr(self.config, part) is None:
        raise UserError(f"{manifest.name}: this model has no {part.replace('_', ' ')}, so it cannot restore pictures")
    assert self.config.autoencoder is not None
    self._mesh = mesh or data_mesh(jax.local_devices())
    self._compute, self.path = for_devices(compute, self._mesh), model_path
    self.denoiser = Denoiser(self.config, params, self._compute, self._mesh, tile_batch)
    self.autoencoder = TiledAutoencoder(
      self.config.autoencoder, params["autoencoder"], self._compute, self._mesh, autoencoder_tile
    )
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
    autoencoder_tile: int = 1024,
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

    Raises:
      UserError: The folder is no converted model, or lacks a part; one line that names it.
    """
    manifest = manifest or read_manifest(path)
    mesh = data_mesh(devices or jax.local_devices())
    if precision == "auto":
      precision = "float32" if platform(mesh) == "cpu" else "bfloat16"
    compute = for_devices(ComputeConfig(dtype=precision), mesh)
    parts = ["unet", "time_aware_encoder", "autoencoder", NULL_PROMPT]
    params = load_params(path, manifest, parts, dtype=precision, sharding=replicated(mesh))
    params |= {part: winograd.prepare(params[part], compute, donate=True) for part in ("unet", "time_aware_encoder")}
    return cls(
      manifest,
      params,
      compute=compute,
      mesh=mesh,
      tile_batch=tile_batch,
      autoencoder_tile=autoencoder_tile,
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
    plans = [self._plan(np.shape(image), scale, sampling) for image in images]
    images = [_require_floats(image) for image in images]
    references = references and [_require_floats(reference) for reference in references]
    shapes = sorted({plan.tile for plan in plans})
    results: dict[int, np.ndarray] = {}
    for nth, shape in enumerate(shapes):
      alike = {number: plan for number, plan in enumerate(plans) if plan.tile == shape}
      told = progress and functools.partial(_tell_part, progress, nth, len(shapes))
      results |= self._upscale_alike(alike, images, keys, sampling, told, references, watch, watch_every)
    return [results[number] for number in range(len(images))]

  def _upscale_alike(
    self,
    plans: "Mapping[int, _Plan]",
    images: Sequence[np.ndarray],
    keys: Sequence[Key[Array, ""]],
    sampling: SamplingConfig,
    progress: Progress | None,
    references: Sequence[np.ndarray] | None,
    watch: Watch | None,
    watch_every: int,
  ) -> dict[int, np.ndarray]:
    """Restores those of the pictures that `plans` has the numbers of, whose tiles are of one shape."""
    bunches = self._bunches(plans)
    order = [number for bunch in bunches for number in bunch]
    f, channels = self.autoencoder.config.downsampling, self.autoencoder.config.latent_channels
    sheet = Sheet.of(
      [plans[number].latent_size for number in order],
      [plans[number].space(f) for number in order],
      plans[order[0]].tile,
      sampling.overlap,
    )
    x, low = (jnp.zeros((*sheet.shape, channels)) for _ in range(2))
    reference = None if references is None else jnp.zeros((*sheet.shape, channels))
    encoded, first = [], 0
    for bunch in bunches:
      lr, padded = _joined([plans[number].prepare(images[number], f) for number in bunch])
      sides = np.array([plans[number].latent_size for number in bunch], np.int32)
      moments, features = self.autoencoder.encode(padded, sides)
      tops = np.array(sheet.tops[first : first + len(bunch)], np.int32)
      drawn = [keys[number] for number in bunch]
      x, low = _start(self.config, sampling.start_step, sampling.start_noise, moments, drawn, x, low, tops)
      if references is not None:
        _, guides = _joined([plans[number].prepare(references[number], f) for number in bunch])
        moments, _ = self.autoencoder.encode(guides, sides)
        reference = _lay_mean(self.autoencoder.config.scale_factor, moments, reference, tops)
      encoded.append((lr, padded, sides, features))
      first += len(bunch)
    steps = samplers.plan(self.config.diffusion, sampling)
    conditions = self.denoiser.condition(self._embed(self._prompts_of(sampling)), sampling.guidance_scale)
    # As many keys as a power of two, so that few programs serve any number of pictures.
    drawn = [keys[number] for number in order] + [keys[order[0]]] * ((1 << (len(order) - 1).bit_length()) - len(order))
    noise = frames.Noise(drawn, sheet.canvas, sheet.row, (sheet.shape[1], channels))

    def pictures(x: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
      first = 0
      for bunch, (lr, padded, sides, features) in zip(bunches, encoded, strict=True):
        latents = sheet.take(x, first, len(bunch), plans[bunch[0]].space(f))
        decoded = self.autoencoder.decode(latents, padded, sides, features, sampling.fidelity_weight)
        size = np.array([plans[number].size for number in bunch], np.int32)
        weight = np.float32(sampling.color_fix_weight)
        finished = _finish(decoded, lr, size, weight, color_fix=sampling.color_fix)
        for number, restored in zip(bunch, finished, strict=True):
          yield number, plans[number].finish(restored)
        first += len(bunch)

    def show(done: int, x0: jax.Array) -> None:
      if watch is not None and (done % watch_every == 0 or done == sampling.steps):
        for number, picture in pictures(x0):
          watch(number, done, picture)

    x = self.denoiser.sample(
      x,
      low,
      sheet,
      jax.tree_util.Partial(_step_noise, noise),
      steps,
      conditions,
      reference=reference,
      progress=progress,
      watch=show if watch is not None else None,
    )
    results = dict(pictures(x))
    if not all(np.isfinite(result).all() for result in results.values()):
      advice = "" if self._compute.dtype == "float32" else "; try float32 precision"
      raise UserError(f"the result has values that are not finite{advice}")
    return results

  def check(self, sampling: SamplingConfig) -> None:
    """Raises UserError if this model cannot do what the settings ask for."""
    sampling.require_within(self.config.diffusion, "start_step")
    if sampling.fidelity_weight > 0 and not self.autoencoder.config.cfw:
      raise UserError(f"fidelity-weight {sampling.fidelity_weight}: this model has no CFW; only 0 is possible")
    for name, prompt in (("prompt", sampling.prompt), ("negative-prompt", sampling.negative_prompt)):
      if prompt not in self._prompts and (self.config.text_encoder is None or self.path is None):
        raise UserError(f"{name} {prompt!r}: this model has no text encoder; only the null prompt is possible")

  def has_room(self, sizes: Sequence[tuple[int, int]], *, scale: float | OutputSize, sampling: SamplingConfig) -> bool:
    """Whether pictures of these sizes (height, width) leave the devices room for another, restored together with them.

    Together they are worth it until their tiles fill a call of the network; what the decoder needs of the encoder must
    fit into a part of the devices' memory.
    """
    plans = [self._plan((*size, 3), scale, sampling) for size in sizes]
    tiles = sum(plan.count_tiles(sampling) for plan in plans)
    kept = sum(plan.frame[0] * plan.frame[1] for plan in plans) * self.autoencoder.bytes_of_a_pixel
    enough = tiles >= self.denoiser.most_tiles(sampling.tile_size**2)
    return not enough and kept < _KEPT_FOR_DECODING * self._mesh.size * free_memory(self._mesh)

  def _plan(self, shape: tuple[int, ...], scale: float | OutputSize, sampling: SamplingConfig) -> "_Plan":
    return _plan(shape, scale, sampling, self.autoencoder.config.downsampling)

  def _bunches(self, plans: "Mapping[int, _Plan]") -> list[list[int]]:
    """The pictures that go through the autoencoder together: of one frame, in numbers that are powers of two for each
    device, as many as the devices take. Where they are fewer than the devices, each goes alone. So it does on a CPU,
    which gains nothing from company."""
    devices, found = self._mesh.size, []
    alike: dict[tuple[int, int], list[int]] = {}
    for number, plan in plans.items():
      alike.setdefault(plan.frame, []).append(number)
    for frame, numbers in alike.items():
      most = 1 if self._compute.platform == "cpu" and devices == 1 else self.autoencoder.most(frame)
      while numbers:
        each = min(most, len(numbers)) // devices
        size = devices << (each.bit_length() - 1) if each else 1
        found.append(numbers[:size])
        numbers = numbers[size:]
    return found

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
    return jnp.stack([self._prompts[prompt].astype(self._compute.jax_dtype) for prompt in prompts])


def count_tiles(
  config: ModelConfig, size: tuple[int, int], *, scale: float | OutputSize, sampling: SamplingConfig
) -> int:
  """The number of diffusion tiles of a picture of `size` (height, width).

  Raises:
    UserError: The result is beyond all reason.
  """
  assert config.autoencoder is not None
  return _plan((*size, 3), scale, sampling, config.autoencoder.downsampling).count_tiles(sampling)


def _plan(shape: tuple[int, ...], scale: float | OutputSize, sampling: SamplingConfig, f: int) -> "_Plan":
  """The sizes that a picture of this shape goes through; `f` is the autoencoder's downsampling."""
  if len(shape) != 3 or shape[2] != 3 or 0 in shape:
    raise UserError(f"image of shape {shape}: expected (height, width, 3)")
  size = output_size(scale).of((shape[0], shape[1]))
  covered = -(-size[0] // f), -(-size[1] // f)
  tile = tiling.tile_sides(covered, sampling.tile_size, sampling.overlap)
  latent_size = max(covered[0], tile[0]), max(covered[1], tile[1])
  return _Plan(size, tile, latent_size, frames.around((f * latent_size[0], f * latent_size[1])))


def _require_floats(image: np.ndarray) -> np.ndarray:
  if isinstance(image, np.ndarray) and image.dtype != np.uint8:
    return to_float(image)
  kind = image.dtype if isinstance(image, np.ndarray) else type(image).__name__
  raise UserError(f"image of {kind}: expected an array of floats in [0, 1]")


class _Plan(NamedTuple):
  """The sizes that a picture goes through.

  Attributes:
    size: The result's height and width.
    tile: Those of its tiles, in latent pixels.
    latent_size: Its latent's. Where it would be shorter than a tile, the picture is continued by its reflection.
    frame: Those of its frame, in pixels.
  """

  size: tuple[int, int]
  tile: tuple[int, int]
  latent_size: tuple[int, int]
  frame: tuple[int, int]

  def space(self, downsampling: int) -> tuple[int, int]:
    """The frame's sides in latent pixels."""
    return self.frame[0] // downsampling, self.frame[1] // downsampling

  def count_tiles(self, sampling: SamplingConfig) -> int:
    return len(tiling.grid(self.latent_size, self.tile, sampling.overlap))

  def prepare(
    self, image: Float[np.ndarray, "h w 3"], downsampling: int
  ) -> tuple[Float[Array, "1 H W 3"], Float[Array, "1 H W 3"]]:
    """The picture at the result's size, in [0, 1]; and in [-1, 1], continued by its reflection."""
    source = image.shape[0], image.shape[1]
    return _prepare(
      frames.put(image, frames.around(source)),
      np.array(source, np.int32),
      np.array(self.size, np.int32),
      frame=self.frame,
      way=_way(source, self.size),
    )

  def finish(self, restored: Float[Array, "H W 3"]) -> Float[np.ndarray, "_ _ 3"]:
    """The picture without its frame."""
    return np.asarray(restored)[: self.size[0], : self.size[1]]


def _way(before: tuple[int, int], after: tuple[int, int]) -> Literal["enlarge", "shrink"]:
  return "shrink" if after[0] < before[0] or after[1] < before[1] else "enlarge"


def _tell_part(progress: Progress, part: int, parts: int, done: int, steps: int) -> None:
  """Tells of the steps of one of several parts as of steps of the whole."""
  progress((part * steps + done) // parts, steps)


# What is small is compiled in few programs: each costs a start of the process some 20 ms, whatever it does.


@functools.partial(jax.jit, static_argnames=("frame", "way"))
def _prepare(
  image: jax.Array, source: jax.Array, size: jax.Array, *, frame: tuple[int, int], way: Literal["enlarge", "shrink"]
) -> tuple[jax.Array, jax.Array]:
  resized = frames.resize(image, source, size, frame=frame, way=way)
  return resized[None], frames.reflect(resized * 2 - 1, size)[None]


def _joined(pictures: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
  """One batch of all."""
  return pictures[0] if len(pictures) == 1 else _concatenated(pictures)


@jax.jit
def _concatenated(pictures: list[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
  lr, padded = zip(*pictures, strict=True)
  return jnp.concatenate(lr), jnp.concatenate(padded)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(5, 6))
def _start(
  config: ModelConfig,
  start_step: int,
  start_noise: float | Float[Array, ""],
  moments: Float[Array, "b h w m"],
  keys: Sequence[Key[Array, ""]],
  x: Float[Array, "H W c"],
  low: Float[Array, "H W c"],
  tops: Int[Array, " b"],
) -> tuple[Float[Array, "H W c"], Float[Array, "H W c"]]:
  """Lays pictures on two sheets, at the rows `tops`: the noised latents that sampling starts from on `x`, and the LR
  pictures' own latents on `low`."""
  assert config.autoencoder is not None
  b, h, w, _ = moments.shape
  channels = config.autoencoder.latent_channels
  noise = frames.Noise(keys, jnp.repeat(jnp.arange(b), h), jnp.tile(jnp.arange(h), b), (w, channels))
  draw = lambda purpose: start_noise * noise(purpose).reshape(b, h, w, channels)
  latent = config.autoencoder.scale_factor * sample_posterior(moments, draw(_POSTERIOR))
  noised = add_noise(config.diffusion, latent, draw(_START), start_step)
  return tiling.lay(x, noised, tops), tiling.lay(low, latent, tops)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def _lay_mean(
  scale_factor: float, moments: Float[Array, "b h w m"], sheet: Float[Array, "H W c"], tops: Int[Array, " b"]
) -> Float[Array, "H W c"]:
  """Lays pictures' latents on a sheet: their posteriors' means."""
  return tiling.lay(sheet, scale_factor * posterior(moments)[0], tops)


def _step_noise(noise: frames.Noise, number: jax.Array) -> Float[Array, "h w c"]:
  return noise(_STEPS, number)


@functools.partial(jax.jit, static_argnames="color_fix")
def _finish(
  decoded: Float[Array, "b h w 3"],
  lr: Float[Array, "b h w 3"],
  size: Int[Array, "b 2"],
  weight: Float[Array, ""],
  *,
  color_fix: str,
) -> Float[Array, "b h w 3"]:
  """The decoder's pictures in [0, 1], in the colours of `lr`."""
  return jnp.clip(color.fix((decoded + 1) / 2, lr, color_fix, size, weight), 0, 1)
