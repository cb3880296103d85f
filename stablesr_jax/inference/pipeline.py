"""The assembled system: load a converted model, enlarge and restore pictures of any size."""

import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from stablesr_jax.checkpoints.store import EMBEDDED, NULL_PROMPT, Manifest, load_params, read_manifest
from stablesr_jax.compilation import compiler_options
from stablesr_jax.config import ComputeConfig, SamplingConfig
from stablesr_jax.diffusion.samplers import plan
from stablesr_jax.diffusion.schedule import q_sample, signal_and_noise
from stablesr_jax.errors import UserError
from stablesr_jax.inference import color, tiling
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.models.components import modules
from stablesr_jax.models.kl_autoencoder import posterior
from stablesr_jax.models.parameters import Params
from stablesr_jax.models.tokenizer import tokenize
from stablesr_jax.parallel import data_mesh, replicated
from stablesr_jax.pixels import resize

Picture = TypeVar("Picture", np.ndarray, Image.Image)
Progress = Callable[[int, int], None]

# Images are padded to a multiple of this many pixels: what the networks need, and few shapes to compile for.
_PAD_TO = 64
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
    params: dict[str, Params],
    *,
    compute: ComputeConfig = ComputeConfig(),
    mesh: jax.sharding.Mesh | None = None,
    tile_batch: int | None = None,
    autoencoder_tile: int = 1024,
    model_path: str | os.PathLike | None = None,
  ):
    """Most callers want `load`.

    Args:
      params: "unet", "time_aware_encoder", "autoencoder" and "null_prompt"; "text_encoder" if prompts are wanted.
      mesh: devices that share the tiles; by default all.
      tile_batch: tiles in one call of the network; by default 1 on CPU, up to 8 for each accelerator.
      autoencoder_tile: largest side in pixels that the autoencoder takes whole; larger pictures go through it in
        overlapping pieces of this size, so that memory does not grow with the picture.
      model_path: where to find the text encoder when a prompt first needs it.
    """
    self.manifest, self.config = manifest, manifest.architecture
    for part in ("unet", "time_aware_encoder", "autoencoder"):
      if getattr(self.config, part) is None:
        raise UserError(f"{manifest.name}: this model has no {part.replace('_', ' ')}, so it cannot restore pictures")
    assert self.config.autoencoder is not None
    self._mesh = mesh or data_mesh()
    self._compute, self._path = compute, model_path
    self._autoencoder = modules(self.config, compute)["autoencoder"]
    self._autoencoder_config = self.config.autoencoder
    self._autoencoder_tile = max(autoencoder_tile // _PAD_TO, 1) * _PAD_TO
    self.denoiser = Denoiser(self.config, params, compute, self._mesh, tile_batch)
    # With the denoiser's own trees, so that what it drops is freed.
    self._params = params | self.denoiser.params
    jit = functools.partial(jax.jit, compiler_options=compiler_options())
    self._encode, self._decode = jit(self._encode_impl), jit(self._decode_impl)
    self._decode_piece = jit(self._decode_piece_impl)
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
      path: a folder written by `convert_weights.py` or `train.py`; by default the small model that ships with the
        package.
      manifest: What `read_manifest(path)` gave, if it was read already.
      precision: of the computation; "auto" is float32 on CPU and bfloat16 on GPU and TPU.
      devices: that share the work; by default all.

    Raises:
      UserError: the folder is no converted model, or lacks a part; one line that names it.
    """
    manifest = manifest or read_manifest(path)
    if precision == "auto":
      precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    mesh = data_mesh(devices)
    parts = ["unet", "time_aware_encoder", "autoencoder", NULL_PROMPT]
    params = load_params(path, manifest, parts, dtype=precision, sharding=replicated(mesh))
    return cls(
      manifest,
      params,
      compute=ComputeConfig(dtype=precision),
      mesh=mesh,
      tile_batch=tile_batch,
      autoencoder_tile=autoencoder_tile,
      model_path=path,
    )

  def upscale(self, image: Picture, *, scale: float = 4.0, seed: int | jax.Array = 0, **options: Any) -> Picture:
    """Enlarges and restores one picture.

    Args:
      image: a PIL image (made RGB), or an array (H, W, 3) of uint8, or of floats in [0, 1].
      scale: how much larger the sides become.
      seed: an integer, or a `jax.random.key`. The result depends on it and the picture, not on batches or devices.
      options: `sampling` and `progress` as in `upscale_batch`.

    Returns:
      The same kind as the input: PIL RGB, uint8, or float32 in [0, 1]; (round(scale H), round(scale W), 3).

    Raises:
      UserError: the picture's shape, type or range, the scale, or an option is wrong, or the result is not finite.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    array = _to_float(image)
    [restored] = self.upscale_batch([array], scale=scale, keys=[key], **options)
    return _like(image, restored)

  def upscale_batch(
    self,
    images: Sequence[np.ndarray],
    *,
    scale: float,
    keys: Sequence[jax.Array],
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
  ) -> list[np.ndarray]:
    """Enlarges and restores pictures of any sizes together: their tiles fill the same batches.

    Args:
      images: (H, W, 3) float32 in [0, 1].
      keys: one `jax.random.key` for each picture.
      sampling: by default the model's own.
      progress: called with (steps done, steps).

    Returns:
      (round(scale H), round(scale W), 3) float32 in [0, 1] for each.
    """
    sampling = sampling or self.manifest.sampling
    self.check(sampling)
    if not (scale > 0 and math.isfinite(scale)):
      raise UserError(f"scale {scale}: must be a positive number")
    enlarged = [self._enlarge(image, scale, sampling.tile_size) for image in images]
    padded = [_pad(image * 2 - 1) for image in enlarged]

    key = lambda k, purpose: jax.random.fold_in(keys[k], purpose)
    moments, features = zip(*(self._encode_image(image) for image in padded), strict=True)
    latents = [self._posterior_sample(m, key(k, _POSTERIOR)) for k, m in enumerate(moments)]
    steps = plan(self.config.diffusion, sampling)
    signal, level = (table[sampling.start_step] for table in signal_and_noise(self.config.diffusion))
    start = [q_sample(z, jax.random.normal(key(k, _START), z.shape), signal, level) for k, z in enumerate(latents)]
    sampled = self.denoiser.sample(
      start,
      latents,
      lambda k, i: _step_noise(key(k, _STEPS), i, latents[k].shape),
      steps,
      self.denoiser.condition(steps, self._prompt_embeddings(sampling), sampling.guidance_scale),
      tile=sampling.tile_size,
      overlap=sampling.overlap,
      progress=progress,
    )

    results = []
    for image, z, lr, f, original in zip(padded, sampled, enlarged, features, images, strict=True):
      decoded = self._decode_latent(z, image, f, sampling.fidelity_weight)[: lr.shape[0], : lr.shape[1]]
      restored = _fix_color((decoded + 1) / 2, lr, sampling.color_fix)
      size = _target_size(original, scale)
      if restored.shape[:2] != size:
        restored = _shrink(restored, size)
      result = np.asarray(jnp.clip(restored, 0, 1))
      if not np.isfinite(result).all():
        raise UserError("the result has values that are not finite; try float32 precision")
      results.append(result)
    return results

  def check(self, sampling: SamplingConfig) -> None:
    """Raises UserError if this model cannot do what the settings ask for."""
    sampling.require_within(self.config.diffusion, "start_step")
    if sampling.fidelity_weight > 0 and not self._autoencoder_config.cfw:
      raise UserError(f"fidelity-weight {sampling.fidelity_weight}: this model has no CFW; only 0 is possible")
    for prompt in self._used_prompts(sampling):
      if prompt not in self._prompts and (self.config.text_encoder is None or self._path is None):
        raise UserError(f"prompt {prompt!r}: this model has no text encoder; only the null prompt is possible")

  def _enlarge(self, image: np.ndarray, scale: float, tile: int) -> jax.Array:
    """Bicubic enlargement by `scale`, and further where the shorter side would be less than a tile."""
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
      raise UserError(f"image of shape {image.shape}: expected (height, width, 3)")
    height, width = _target_size(image, scale)
    least = tile * self._autoencoder_config.downsampling
    factor = max(1.0, least / min(height, width))
    size = (max(least, round(height * factor)), max(least, round(width * factor))) if factor > 1 else (height, width)
    return _enlarge(jnp.asarray(image, jnp.float32), size)

  def _used_prompts(self, sampling: SamplingConfig) -> list[str]:
    return [sampling.prompt] + ([sampling.negative_prompt] if sampling.guidance_scale != 1 else [])

  def _prompt_embeddings(self, sampling: SamplingConfig) -> jax.Array:
    """(1, N, C), or (2, N, C) with the negative prompt's behind it where guidance needs it."""
    prompts = self._used_prompts(sampling)
    if missing := [prompt for prompt in prompts if prompt not in self._prompts]:
      assert self._path is not None
      params = load_params(self._path, self.manifest, ["text_encoder"], sharding=replicated(self._mesh))
      encoder = modules(self.config)["text_encoder"]
      embed = jax.jit(lambda params, tokens: encoder.apply({"params": params}, tokens))
      self._prompts |= dict(
        zip(missing, embed(params["text_encoder"], tokenize(missing, self.config.context_length)), strict=True)
      )
    return jnp.stack([self._prompts[prompt].astype(self._compute.jax_dtype) for prompt in prompts])

  def _posterior_sample(self, moments: jax.Array, key: jax.Array) -> jax.Array:
    mean, std = posterior(moments)
    return self._autoencoder_config.scale_factor * (mean + std * jax.random.normal(key, mean.shape))

  # The autoencoder, whole or in pieces. Images are (H, W, 3) in [-1, 1], sides divisible by _PAD_TO.

  def _variables(self) -> Any:
    return {"params": self._params["autoencoder"]}

  def _encode_impl(self, variables, image):
    moments, features = self._autoencoder.apply(variables, image[None], method="encode")
    return moments[0], (features if self._autoencoder_config.cfw else None)

  def _decode_impl(self, variables, z, features, weight):
    z = z[None] / self._autoencoder_config.scale_factor
    return self._autoencoder.apply(variables, z, features, weight, method="decode")[0]

  def _decode_piece_impl(self, variables, z, image, weight):
    _, features = self._encode_impl(variables, image)
    return self._decode_impl(variables, z, features, weight)

  def _pieces(self, shape: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, int]]:
    """Where pieces of an image start, in latent pixels, and their sides in latent pixels."""
    f = self._autoencoder_config.downsampling
    sides = [min(side, self._autoencoder_tile) // f for side in shape[:2]]
    overlap = self._autoencoder_tile // f // 4
    offsets = [
      tiling.offsets(side // f, tile, min(overlap, tile - 1)) for side, tile in zip(shape, sides, strict=False)
    ]
    return np.array([(y, x) for y in offsets[0] for x in offsets[1]], np.int32), (sides[0], sides[1])

  def _encode_image(self, image: jax.Array) -> tuple[jax.Array, Any]:
    """Moments of an image, and the features for CFW where the image was encoded whole."""
    starts, sides = self._pieces(image.shape)
    if len(starts) == 1:
      return self._encode(self._variables(), image)
    f = self._autoencoder_config.downsampling
    blend = tiling.Blend((image.shape[0] // f, image.shape[1] // f), sides, self._autoencoder_tile // f // 4)
    for y, x in starts:
      piece = _cut(image, f * y, f * x, f * sides[0], f * sides[1])
      blend.add(self._encode(self._variables(), piece)[0], y, x)
    return blend.result(), None

  def _decode_latent(self, z: jax.Array, image: jax.Array, features: Any, weight: float) -> jax.Array:
    """A latent (h, w, 4) and the LR image at the output's size -> the image (H, W, 3)."""
    weight = jnp.float32(weight)
    starts, sides = self._pieces(image.shape)
    if len(starts) == 1:
      return self._decode(self._variables(), z, features, weight)
    f = self._autoencoder_config.downsampling
    blend = tiling.Blend(image.shape[:2], (f * sides[0], f * sides[1]), self._autoencoder_tile // 4)
    for y, x in starts:
      piece = _cut(image, f * y, f * x, f * sides[0], f * sides[1])
      blend.add(self._decode_piece(self._variables(), _cut(z, y, x, *sides), piece, weight), f * y, f * x)
    return blend.result()


def _target_size(image: np.ndarray, scale: float) -> tuple[int, int]:
  height, width = (max(1, round(side * scale)) for side in image.shape[:2])
  return height, width


@functools.partial(jax.jit, static_argnums=1)
def _enlarge(image: jax.Array, size: tuple[int, int]) -> jax.Array:
  planes = resize(jnp.moveaxis(image, -1, 0), *size, mode="bicubic")
  return jnp.clip(jnp.moveaxis(planes, 0, -1), 0, 1)


def _shrink(image: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes with antialiasing."""
  return jax.image.resize(image, (*size, 3), method="cubic", antialias=True)


def _pad(image: jax.Array) -> jax.Array:
  """Reflects the bottom and right until both sides are divisible by _PAD_TO."""
  pad = [(0, -side % _PAD_TO) for side in image.shape[:2]]
  return jnp.pad(image, [*pad, (0, 0)], mode="reflect")


@functools.partial(jax.jit, static_argnums=2)
def _step_noise(key: jax.Array, i: int, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.normal(jax.random.fold_in(key, i), shape)


@functools.partial(jax.jit, static_argnums=2)
def _fix_color(restored: jax.Array, lr: jax.Array, how: str) -> jax.Array:
  if how == "none":
    return restored
  return color.adain(restored, lr) if how == "adain" else color.wavelet(restored, lr)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _cut(image: jax.Array, y: int, x: int, height: int, width: int) -> jax.Array:
  return jax.lax.dynamic_slice(image, (y, x, 0), (height, width, image.shape[-1]))


def _to_float(image: np.ndarray | Image.Image) -> np.ndarray:
  if isinstance(image, Image.Image):
    return np.asarray(image.convert("RGB"), np.float32) / 255
  image = np.asarray(image)
  if image.dtype == np.uint8:
    return image.astype(np.float32) / 255
  if not np.issubdtype(image.dtype, np.floating):
    raise UserError(f"image of {image.dtype}: expected uint8, or floats in [0, 1]")
  if not (np.isfinite(image).all() and image.size and 0 <= image.min() and image.max() <= 1):
    raise UserError("image of floats: expected values in [0, 1]")
  return image.astype(np.float32)


def _like(image: Any, restored: np.ndarray) -> Any:
  if isinstance(image, np.ndarray) and image.dtype != np.uint8:
    return restored
  pixels = np.round(restored * 255).astype(np.uint8)
  return Image.fromarray(pixels) if isinstance(image, Image.Image) else pixels
