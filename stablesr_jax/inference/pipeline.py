"""The assembled system: load a converted model, enlarge and restore pictures of any size."""

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from stablesr_jax.checkpoints.store import EMBEDDED, NULL_PROMPT, Manifest, load_params, read_manifest
from stablesr_jax.config import ComputeConfig, ModelConfig, SamplingConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.diffusion.schedule import add_noise
from stablesr_jax.errors import UserError
from stablesr_jax.inference import color
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.inference.tiled_autoencoder import SIDE_MULTIPLE, TiledAutoencoder
from stablesr_jax.models import winograd
from stablesr_jax.models.components import modules
from stablesr_jax.models.kl_autoencoder import sample_posterior
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.models.tokenizer import tokenize
from stablesr_jax.parallel import data_mesh, for_devices, platform, replicated
from stablesr_jax.pixels import Picture, fit, like, pad_to_multiple, shrink, to_float

Progress = Callable[[int, int], object]

# 48 GiB as float32, of which several copies are needed.
_MOST_PIXELS = 2**32
# The image's key is split by purpose, so that none of them depends on how often the others draw.
_POSTERIOR, _START, _STEPS = 0, 1, 2


class StableSR:
  """A loaded model.

  model = StableSR.load("models/stablesr_512")
  restored = model.upscale(Image.open("photo.jpg"), scale=4)
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
      mesh: The devices that share the tiles; by default all.
      tile_batch: The number of tiles in one call of the network; by default 1 on CPU, up to 8 for each accelerator.
      autoencoder_tile: The largest side in pixels that the autoencoder takes whole; larger pictures go through it in
        overlapping pieces of this size, so that memory does not grow with the picture.
      model_path: Where to find the text encoder when a prompt first needs it.
    """
    self.manifest, self.config = manifest, manifest.architecture
    for part in ("unet", "time_aware_encoder", "autoencoder"):
      if getattr(self.config, part) is None:
        raise UserError(f"{manifest.name}: this model has no {part.replace('_', ' ')}, so it cannot restore pictures")
    assert self.config.autoencoder is not None
    self._mesh = mesh or data_mesh()
    self._compute, self._path = for_devices(compute, self._mesh), model_path
    self.denoiser = Denoiser(self.config, params, self._compute, self._mesh, tile_batch)
    self.autoencoder = TiledAutoencoder(self.config.autoencoder, params["autoencoder"], self._compute, autoencoder_tile)
    self._prompts: dict[str, jax.Array] = {"": params[NULL_PROMPT]}

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
      devices: The devices that share the work; by default all.
      tile_batch: As in `StableSR`.
      autoencoder_tile: As in `StableSR`.

    Raises:
      UserError: The folder is no converted model, or lacks a part; one line that names it.
    """
    manifest = manifest or read_manifest(path)
    mesh = data_mesh(devices)
    if precision == "auto":
      precision = "float32" if platform(mesh) == "cpu" else "bfloat16"
    compute = ComputeConfig(dtype=precision, platform=platform(mesh))
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
    scale: float = 4.0,
    seed: int | np.integer | Key[Array, ""] = 42,
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
  ) -> Picture:
    """Enlarges and restores one picture.

    Args:
      image: A PIL image (made RGB), or an array (H, W, 3) of uint8, or of floats in [0, 1].
      scale: How much larger the sides become; below 1, smaller.
      seed: An integer, or a `jax.random.key`. The result depends on it and the picture, not on batches or devices.
      sampling: As in `upscale_batch`.
      progress: As in `upscale_batch`.

    Returns:
      The same kind as the input: PIL RGB, uint8, or float32 in [0, 1]; (round(scale H), round(scale W), 3).

    Raises:
      UserError: The picture's shape, type or range, the scale, or an option is wrong, or the result is not finite.
    """
    key = jax.random.key(seed) if isinstance(seed, int | np.integer) else seed
    [restored] = self.upscale_batch([to_float(image)], scale=scale, keys=[key], sampling=sampling, progress=progress)
    return like(restored, image)

  def upscale_batch(
    self,
    images: Sequence[np.ndarray],
    *,
    scale: float,
    keys: Sequence[Key[Array, ""]],
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
  ) -> list[Float[np.ndarray, "_ _ 3"]]:
    """Enlarges and restores pictures of any sizes together: their tiles fill the same batches.

    Args:
      images: Pictures (H, W, 3), float32 in [0, 1].
      scale: As in `upscale`.
      keys: A `jax.random.key` for each picture.
      sampling: The settings of the sampling; by default the model's own.
      progress: Called with (steps done, steps).

    Returns:
      (round(scale H), round(scale W), 3) float32 in [0, 1] for each.

    Raises:
      UserError: As `upscale`.
    """
    sampling = sampling or self.manifest.sampling
    self.check(sampling)
    if not (scale > 0 and math.isfinite(scale)):
      raise UserError(f"scale {scale}: must be a positive number")
    sizes = [self._working_size(image, scale, sampling.tile_size) for image in images]
    resized, padded = zip(*(_resize(image, size) for image, size in zip(images, sizes, strict=True)), strict=True)
    encoded = [self.autoencoder.encode(image) for image in padded]
    start = functools.partial(_start, self.config, sampling.start_step, sampling.start_noise)
    latents, noised = zip(*(start(moments, key) for (moments, _), key in zip(encoded, keys, strict=True)), strict=True)
    steps = samplers.plan(self.config.diffusion, sampling)
    sampled = self.denoiser.sample(
      noised,
      latents,
      lambda k, i: _step_noise(keys[k], i, latents[k].shape),
      steps,
      self.denoiser.condition(steps, self._embed(self._prompts_of(sampling)), sampling.guidance_scale),
      tile=sampling.tile_size,
      overlap=sampling.overlap,
      progress=progress,
    )

    results = []
    for original, lr, image, (_, features), latent in zip(images, resized, padded, encoded, sampled, strict=True):
      decoded = self.autoencoder.decode(latent, image, features, sampling.fidelity_weight)
      result = np.asarray(_finish(decoded, lr, size=scaled_size(original, scale), color_fix=sampling.color_fix))
      if not np.isfinite(result).all():
        advice = "" if self._compute.dtype == "float32" else "; try float32 precision"
        raise UserError(f"the result has values that are not finite{advice}")
      results.append(result)
    return results

  def check(self, sampling: SamplingConfig) -> None:
    """Raises UserError if this model cannot do what the settings ask for."""
    sampling.require_within(self.config.diffusion, "start_step")
    if sampling.fidelity_weight > 0 and not self.autoencoder.config.cfw:
      raise UserError(f"fidelity-weight {sampling.fidelity_weight}: this model has no CFW; only 0 is possible")
    for name, prompt in (("prompt", sampling.prompt), ("negative-prompt", sampling.negative_prompt)):
      if prompt not in self._prompts and (self.config.text_encoder is None or self._path is None):
        raise UserError(f"{name} {prompt!r}: this model has no text encoder; only the null prompt is possible")

  def _working_size(self, image: np.ndarray, scale: float, tile: int) -> tuple[int, int]:
    """The sides times `scale`, and more where the shorter one would be less than a tile."""
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
      raise UserError(f"image of shape {image.shape}: expected (height, width, 3)")
    size = scaled_size(image, scale)
    shortest = tile * self.autoencoder.config.downsampling
    if (factor := shortest / min(size)) > 1:
      size = (max(shortest, round(size[0] * factor)), max(shortest, round(size[1] * factor)))
      if size[0] * size[1] > _MOST_PIXELS:
        height, width = image.shape[:2]
        raise UserError(f"image of {width}x{height} pixels: too long for tiles of {tile} latent pixels")
    return size

  def _prompts_of(self, sampling: SamplingConfig) -> list[str]:
    """The prompt, and behind it the negative prompt where guidance needs it."""
    return [sampling.prompt] + ([sampling.negative_prompt] if sampling.guidance_scale != 1 else [])

  def _embed(self, prompts: Sequence[str]) -> jax.Array:
    """The embeddings of prompts (P, N, C), computed once for each."""
    if missing := [prompt for prompt in prompts if prompt not in self._prompts]:
      assert self._path is not None
      params = load_params(self._path, self.manifest, ["text_encoder"], sharding=replicated(self._mesh))
      encoder = modules(self.config, ComputeConfig(platform=self._compute.platform))["text_encoder"]
      embed = jax.jit(lambda params, tokens: apply(encoder, params, tokens))
      self._prompts |= dict(
        zip(missing, embed(params["text_encoder"], tokenize(missing, self.config.context_length)), strict=True)
      )
    return jnp.stack([self._prompts[prompt].astype(self._compute.jax_dtype) for prompt in prompts])


def scaled_size(image: np.ndarray, scale: float) -> tuple[int, int]:
  """The height and width of a picture's result.

  Raises:
    UserError: They are beyond all reason.
  """
  height, width = image.shape[:2]
  if (height * scale) * (width * scale) > _MOST_PIXELS:  # in floats: infinite, but no error
    raise UserError(f"scale {scale}: the result would have more than {_MOST_PIXELS / 1e9:.1f} gigapixels")
  return max(1, round(height * scale)), max(1, round(width * scale))


# What is small is compiled in few programs: each costs a start of the process some 20 ms, whatever it does.


@functools.partial(jax.jit, static_argnames="size")
def _resize(image: Float[Array, "h w 3"], size: tuple[int, int]) -> tuple[Float[Array, "H W 3"], Float[Array, "P Q 3"]]:
  """The picture brought to `size`, bicubic; and this in [-1, 1], padded for the networks."""
  resized = fit(image, size)
  return resized, pad_to_multiple(resized * 2 - 1, SIDE_MULTIPLE)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _start(
  config: ModelConfig,
  start_step: int,
  start_noise: float | Float[Array, ""],
  moments: Float[Array, "h w m"],
  key: Key[Array, ""],
) -> tuple[Float[Array, "h w c"], Float[Array, "h w c"]]:
  """The LR picture's latent, and where sampling starts: this, noised."""
  assert config.autoencoder is not None
  shape = (*moments.shape[:2], config.autoencoder.latent_channels)
  noise = lambda purpose: start_noise * jax.random.normal(jax.random.fold_in(key, purpose), shape)
  latent = config.autoencoder.scale_factor * sample_posterior(moments, noise(_POSTERIOR))
  return latent, add_noise(config.diffusion, latent, noise(_START), start_step)


@functools.partial(jax.jit, static_argnums=2)
def _step_noise(key: Key[Array, ""], i: int | jax.Array, shape: tuple[int, ...]) -> Float[Array, "h w c"]:
  return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, _STEPS), i), shape)


@functools.partial(jax.jit, static_argnames=("size", "color_fix"))
def _finish(
  decoded: Float[Array, "P Q 3"], lr: Float[Array, "H W 3"], *, size: tuple[int, int], color_fix: str
) -> Float[Array, "{size[0]} {size[1]} 3"]:
  """The decoder's picture without its padding, in [0, 1], in the colours of `lr`, at its final size."""
  restored = color.fix((decoded[: lr.shape[0], : lr.shape[1]] + 1) / 2, lr, color_fix)
  if restored.shape[:2] != size:
    restored = shrink(restored, size)
  return jnp.clip(restored, 0, 1)
