"""The stages that pictures go through together: encoding, sampling, decoding.

Where memory runs out in one, it is tried again with less at once; where half precision does not suffice, in float32.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from stablesr_jax import host_memory
from stablesr_jax.config import ComputeConfig, ModelConfig, SamplingConfig
from stablesr_jax.diffusion import samplers
from stablesr_jax.diffusion.schedule import add_noise
from stablesr_jax.errors import UserError, is_out_of_memory
from stablesr_jax.inference import color, color_bands, frames, memory, tiling
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.inference.enlarged import Enlarged
from stablesr_jax.inference.picture_sizes import PictureSizes
from stablesr_jax.inference.tiled_autoencoder import TiledAutoencoder
from stablesr_jax.inference.tiling import Sheet
from stablesr_jax.models import winograd
from stablesr_jax.models.kl_autoencoder import sample_posterior
from stablesr_jax.models.parameters import Params
from stablesr_jax.parallel import free_memory

T = TypeVar("T")
Tell = Callable[[str], object]

# The values of a band of a large latent.
_BAND = 1 << 23
# The image's key is split by purpose, so that none of them depends on how often the others draw.
_POSTERIOR, _START, _STEPS = 0, 1, 2
_PARTS = ("unet", "time_aware_encoder", "autoencoder")


@dataclasses.dataclass(frozen=True)
class Task:
  """Pictures whose tiles are of one shape, which are restored together.

  Attributes:
    sizes: Their sizes, by their numbers, in the order in which they lie on the sheet.
    images: The pictures, float32 in [0, 1].
    keys: What their noise is drawn from.
    spaces: The sides that each one's latent takes of the sheet.
    sampling: The settings.
    sheet: The sheet of their latents.
    tell: What to tell of something that went wrong and was mended.
  """

  sizes: Mapping[int, PictureSizes]
  images: Mapping[int, Float[np.ndarray, "_ _ 3"]]
  keys: Mapping[int, Key[Array, ""]]
  spaces: Mapping[int, tuple[int, int]]
  sampling: SamplingConfig
  sheet: Sheet
  tell: Tell

  @classmethod
  def of(
    cls,
    sizes: Mapping[int, PictureSizes],
    images: Mapping[int, np.ndarray],
    keys: Mapping[int, Key[Array, ""]],
    spaces: Mapping[int, tuple[int, int]],
    sampling: SamplingConfig,
    tell: Tell,
  ) -> "Task":
    """A task of the pictures that `sizes` has, in its order."""
    tile = next(iter(sizes.values())).tile
    sheet = Sheet.of(
      [own.latent for own in sizes.values()], [spaces[number] for number in sizes], tile, sampling.overlap
    )
    return cls(sizes, images, keys, spaces, sampling, sheet, tell)

  def only(self, numbers: Sequence[int]) -> "Task":
    """The task of some of these pictures alone."""
    sizes = {number: self.sizes[number] for number in numbers}
    return Task.of(sizes, self.images, self.keys, self.spaces, self.sampling, self.tell)

  def of_references(self, references: Mapping[int, Float[np.ndarray, "_ _ 3"]]) -> "Task":
    """The task of pictures of any sizes in place of these, whose latents are their means."""
    sampling = dataclasses.replace(self.sampling, start_noise=0.0)
    return dataclasses.replace(self, images=references, sampling=sampling)

  def top(self, number: int) -> int:
    """The row of the sheet where a picture begins."""
    return self.sheet.tops[list(self.sizes).index(number)]

  def tops(self, numbers: Sequence[int]) -> Int[np.ndarray, " b"]:
    return np.array([self.top(number) for number in numbers], np.int32)

  def take(self, sheet: Float[Array, "h w c"], numbers: Sequence[int]) -> Float[Array, "b _ _ c"]:
    """The latents of pictures that lie below each other and take spaces of one size."""
    first = list(self.sizes).index(numbers[0])
    return self.sheet.take(sheet, first, len(numbers), self.spaces[numbers[0]])

  def move(
    self, sheet: Float[Array, "h w c"], target: "Task", onto: Float[Array, "h2 w2 c"] | None = None
  ) -> Float[Array, "h2 w2 c"]:
    """The pictures that both tasks have, from this one's sheet to the other's, there on what is `onto`."""
    moved = jnp.zeros((*target.sheet.shape, sheet.shape[-1])) if onto is None else onto
    for number in self.sizes:
      if number in target.sizes:
        moved = _lay(moved, self.take(sheet, [number]), target.tops([number]))
    return moved

  def noise(self, channels: int) -> frames.Noise:
    """The noise of all on the sheet."""
    keys = [self.keys[number] for number in self.sizes]
    # As many keys as a power of two, so that few programs serve any number of pictures.
    keys += keys[:1] * ((1 << (len(keys) - 1).bit_length()) - len(keys))
    return frames.Noise(keys, self.sheet.canvas, self.sheet.row, (self.sheet.shape[1], channels))


class Kept(NamedTuple):
  """What is kept of pictures that went through the encoder together, for the decoder.

  Attributes:
    numbers: The pictures.
    lr: Their canvases, in [0, 1], in their frame; None where they go through in pieces.
    features: The encoder's features, for CFW; None where they are computed again.
  """

  numbers: tuple[int, ...]
  lr: Float[Array, "b h w 3"] | None = None
  features: list[jax.Array] | None = None


class Stages:
  """The compiled networks, and how pictures go through them.

  Attributes:
    denoiser: The networks of the diffusion.
    autoencoder: The autoencoder.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: Mapping[str, Params],
    compute: ComputeConfig,
    mesh: jax.sharding.Mesh,
    tile_batch: int | None,
    autoencoder_tile: int | None,
    max_memory: float,
  ):
    """Arguments are those of `StableSR`."""
    assert config.autoencoder is not None
    self._config, self._compute, self._mesh = config, compute, mesh
    self._tile_batch, self._max_memory, self._chosen_tile = tile_batch, max_memory, autoencoder_tile
    self._params = {part: params[part] for part in _PARTS}
    # Asked for once, so that pictures do not depend on what was restored before them.
    self._free = free_memory(mesh, max_memory)
    tile = autoencoder_tile or memory.chosen_tile(config.autoencoder, compute, self._free)
    self.denoiser = Denoiser(config, params, compute, mesh, tile_batch, max_memory)
    self.autoencoder = TiledAutoencoder(config.autoencoder, params["autoencoder"], compute, mesh, tile)
    self._told = set[str]()

  def fit(self, pictures: Sequence[PictureSizes]) -> None:
    """Takes the largest pieces with which the bound of the memory holds for each of these pictures.

    Raises:
      UserError: It holds with none.
    """
    if math.isinf(self._max_memory):
      return
    tiles = [self._chosen_tile] if self._chosen_tile else memory.AUTOENCODER_TILES
    for sizes in pictures:
      needs = {
        tile: memory.of_picture(self._config, self._compute, sizes, tile, self._tile_batch or 1) for tile in tiles
      }
      fitting = [tile for tile, need in needs.items() if need <= self._free]
      if not fitting:
        wanted = host_memory.format_size(self._max_memory - self._free + min(needs.values()))
        size = f"{sizes.size[1]}x{sizes.size[0]}"
        raise UserError(f"max-memory {host_memory.format_size(self._max_memory)}: a result of {size} needs {wanted}")
      tiles = fitting
    self.autoencoder.tile = tiles[-1]

  def task(
    self,
    sizes: Mapping[int, PictureSizes],
    images: Mapping[int, np.ndarray],
    keys: Mapping[int, Key[Array, ""]],
    sampling: SamplingConfig,
    tell: Tell,
  ) -> Task:
    """A task of the pictures that `sizes` has, those of one frame beside each other."""
    sizes = {number: sizes[number] for bunch in self._bunches(sizes) for number in bunch}
    spaces = {number: self._space(own) for number, own in sizes.items()}
    return Task.of(sizes, images, keys, spaces, sampling, tell)

  def encode(self, task: Task) -> tuple[Float[Array, "h w c"], list[Kept]]:
    """The LR pictures' latents on the sheet, and what the decoder needs of them."""
    low, kept = self._with_less(task, "autoencoder", lambda: self._encode(task))
    return self._mended(task, "encoding", low, lambda exact, alone: exact.encode(alone)[0]), kept

  def sample(
    self,
    task: Task,
    low: Float[Array, "h w c"],
    prompts: Float[Array, "p n d"],
    reference: Float[Array, "h w c"] | None = None,
    progress: Callable[[int, int], object] | None = None,
    watch: Callable[[int, jax.Array], object] | None = None,
  ) -> Float[Array, "h w c"]:
    """Aggregation sampling (see `Denoiser.sample`) from the noised latents on.

    Args:
      low: The LR pictures' latents on the sheet.
      prompts: The prompt's embedding, or the prompt's and the negative prompt's.
      reference: The latents of reference pictures.
    """
    options = {"reference": reference, "progress": progress, "watch": watch}
    x = self._with_less(task, "denoiser", lambda: self._sample(task, low, prompts, **options))
    move = lambda sheet, alone: None if sheet is None else task.move(sheet, alone)
    again = lambda exact, alone: exact.sample(alone, move(low, alone), prompts, move(reference, alone))
    return self._mended(task, "denoising", x, again)

  def decode(
    self, task: Task, x: Float[Array, "h w c"], kept: Sequence[Kept], *, mend: bool = True
  ) -> Iterator[tuple[int, Float[np.ndarray, "_ _ 3"]]]:
    """The pictures of latents on the sheet, in [0, 1], in the colours of their inputs; and their numbers.

    Args:
      mend: Whether pictures that have values that are not finite are made again, or refused; else they come as they
        are.

    Raises:
      UserError: One has values that are not finite.
    """
    for together in kept:
      for number, picture, finite in self._decode_with_less(task, x, together):
        if mend and not finite:
          picture = self._decode_exactly(task, x, number)
        yield number, picture

  @functools.cached_property
  def exact(self) -> "Stages":
    """The same in float32, its parameters made from those at hand: rounded as they are, they do not overflow. They are
    kept, as the next picture may need them, too."""
    compute = dataclasses.replace(self._compute, dtype="float32")
    params = {part: jax.tree.map(lambda a: a.astype(jnp.float32), tree) for part, tree in self._params.items()}
    params |= {part: winograd.prepare(params[part], compute, donate=True) for part in _PARTS[:2]}
    return Stages(self._config, params, compute, self._mesh, self._tile_batch, self.autoencoder.tile, self._max_memory)

  def _decode_exactly(self, task: Task, x: jax.Array, number: int) -> np.ndarray:
    if self._compute.dtype == "float32":
      raise _not_finite()
    self._tell_exact(task, "decoding")
    self.exact.autoencoder.tile = self.autoencoder.tile
    [(_, picture, finite)] = self.exact._decode_with_less(task, x, Kept((number,)))
    if not finite:
      raise _not_finite()
    return picture

  def _encode(self, task: Task) -> tuple[Float[Array, "h w c"], list[Kept]]:
    config = self.autoencoder.config
    low, kept = jnp.zeros((*task.sheet.shape, config.latent_channels)), []
    for bunch in self._bunches(task.sizes):
      keys = [task.keys[number] for number in bunch]
      lay = functools.partial(_lay_latents, self._config, task.sampling.start_noise)
      if self._in_pieces(task, bunch):
        moments = self.autoencoder.encode_in_pieces(self._enlarged(task, bunch[0]), task.sizes[bunch[0]].latent)
        for first, band in _bands(moments):
          low = lay(band[None], keys, low, task.tops(bunch), np.int32(first))
        kept.append(Kept(tuple(bunch)))
      else:
        lr, moments, features = self._encode_whole(task, bunch)
        low = lay(moments, keys, low, task.tops(bunch), np.int32(0))
        kept.append(Kept(tuple(bunch), lr, features))
    return jax.block_until_ready(low), kept  # what is wrong is known here

  def _encode_whole(self, task: Task, numbers: Sequence[int]) -> tuple[jax.Array, jax.Array, list[jax.Array] | None]:
    """Pictures of one frame: their canvases, in [0, 1]; their moments and their features."""
    lr, pictures = _batch([self._enlarged(task, number).part(0, 0, task.sizes[number].frame) for number in numbers])
    moments, features = self.autoencoder.encode(pictures, _sides(task, numbers))
    return lr, moments, features

  def _sample(self, task: Task, low: jax.Array, prompts: jax.Array, **options: Any) -> jax.Array:
    sampling, noise = task.sampling, task.noise(low.shape[-1])
    x = _noised(self._config, sampling.start_step, sampling.start_noise, low, noise)
    conditions = self.denoiser.condition(prompts.astype(self._compute.jax_dtype), sampling.guidance_scale)
    steps = samplers.plan(self._config.diffusion, sampling)
    drawn = jax.tree_util.Partial(_step_noise, noise)
    return jax.block_until_ready(self.denoiser.sample(x, low, task.sheet, drawn, steps, conditions, **options))

  def _decode(self, task: Task, x: jax.Array, kept: Kept) -> list[tuple[int, np.ndarray, bool]]:
    """The numbers of pictures, the pictures, and whether the decoder's values were finite."""
    fidelity, color_fix = task.sampling.fidelity_weight, task.sampling.color_fix
    weight = np.float32(task.sampling.color_fix_weight)
    if self._in_pieces(task, kept.numbers):
      [number] = kept.numbers
      picture, top = self._enlarged(task, number), task.top(number)
      latents = lambda y, left, shape: tiling.crop(x, top + y, left, *shape)
      canvas = self.autoencoder.decode_in_pieces(latents, picture, task.sizes[number].latent, fidelity)
      finite = bool(np.isfinite(canvas.min()) and np.isfinite(canvas.max()))  # no second array of its size
      canvas += 1
      canvas /= 2
      color_bands.fix_in_place(canvas, picture.part, color_fix, weight)
      return [(number, task.sizes[number].cut(canvas), finite)]
    lr, features = kept.lr, kept.features
    if lr is None or (features is None and self.autoencoder.config.cfw):
      lr, _, features = self._encode_whole(task, kept.numbers)
    decoded = self.autoencoder.decode(task.take(x, kept.numbers), _sides(task, kept.numbers), features, fidelity)
    canvases = np.array([task.sizes[number].canvas for number in kept.numbers], np.int32)
    finished, finite = _finish(decoded, lr, canvases, weight, color_fix=color_fix)
    return [
      (number, task.sizes[number].cut(np.asarray(canvas)), bool(whole))
      for number, canvas, whole in zip(kept.numbers, finished, np.asarray(finite), strict=True)
    ]

  def _decode_with_less(self, task: Task, x: jax.Array, kept: Kept) -> list[tuple[int, np.ndarray, bool]]:
    """As `_decode`; where memory runs out, one picture after the other, in smaller and smaller pieces."""
    try:
      return self._decode(task, x, kept)
    except Exception as error:
      if not is_out_of_memory(error) or not self.autoencoder.shrink(self._largest(task, [kept.numbers])):
        raise
    # Only out of the handler is all free that the attempt had.
    alone = (self._decode_with_less(task, x, Kept((number,))) for number in kept.numbers)
    found = [result for each in alone for result in each]
    self._tell_less(task, "autoencoder")
    return found

  def _with_less(self, task: Task, network: Literal["autoencoder", "denoiser"], attempt: Callable[[], T]) -> T:
    """What an attempt gives; where memory runs out, what one with less at once gives, as long as there is less."""
    eased = False
    while True:
      try:
        result = attempt()
      except Exception as error:
        if not is_out_of_memory(error):
          raise
        if network == "denoiser":
          eased = self.denoiser.halve(task.sheet)
        else:
          eased = self.autoencoder.shrink(self._largest(task, self._bunches(task.sizes)))
        if not eased:
          raise
      else:
        if eased:
          self._tell_less(task, network)
        return result

  def _tell_less(self, task: Task, network: str) -> None:
    if network == "denoiser":
      less = f"the network takes {self.denoiser.most_tiles(math.prod(task.sheet.tile))} tiles at once"
    else:
      less = f"the autoencoder takes pieces of {self.autoencoder.tile} pixels"
    self._tell(task, f"out of memory: from here on {less}")

  def _largest(self, task: Task, bunches: Sequence[Sequence[int]]) -> int:
    """The most pixels that went through the autoencoder at once."""
    return max(len(bunch) * math.prod(task.sizes[bunch[0]].frame) for bunch in bunches)

  def _mended(
    self, task: Task, stage: str, sheet: jax.Array, again: Callable[["Stages", Task], jax.Array]
  ) -> Float[Array, "h w c"]:
    """A stage's sheet, where pictures that have values that are not finite are made again in float32, they alone.

    Raises:
      UserError: In float32 they are not finite either.
    """
    if self._compute.dtype == "float32":  # its results are looked at once, at the end
      return sheet
    finite = np.asarray(_finite_rows(sheet))
    rows = {number: task.sheet.canvas == nth for nth, number in enumerate(task.sizes)}
    spoilt = [number for number in task.sizes if not finite[rows[number]].all()]
    if not spoilt:
      return sheet
    self._tell_exact(task, stage)
    self.exact.autoencoder.tile = self.autoencoder.tile
    alone = task.only(spoilt)
    mended = again(self.exact, alone)
    if not np.asarray(_finite_rows(mended)).all():
      raise _not_finite()
    return alone.move(mended, task, sheet)

  def _tell_exact(self, task: Task, stage: str) -> None:
    self._tell(task, f"{self._compute.dtype} did not suffice: {stage} was done again in float32")

  def _tell(self, task: Task, message: str) -> None:
    """Tells it once."""
    if message not in self._told:
      self._told.add(message)
      task.tell(message)

  def _enlarged(self, task: Task, number: int) -> Enlarged:
    return Enlarged(task.images[number], task.sizes[number].size, task.sizes[number].canvas)

  def _in_pieces(self, task: Task, numbers: Sequence[int]) -> bool:
    return not self.autoencoder.whole(task.sizes[numbers[0]].frame)

  def _space(self, sizes: PictureSizes) -> tuple[int, int]:
    """The sides that a picture's latent takes of a sheet: its frame's, but of a large one no more than it has."""
    f = self.autoencoder.config.downsampling
    if self.autoencoder.whole(sizes.frame):
      return sizes.frame[0] // f, sizes.frame[1] // f
    piece = self.autoencoder.piece_shape(sizes.latent)
    return max(sizes.latent[0], piece[0]), max(sizes.latent[1], piece[1])

  def _bunches(self, sizes: Mapping[int, PictureSizes]) -> list[list[int]]:
    """The pictures that go through the autoencoder together: of one frame, in numbers that are powers of two for each
    device, as many as the devices take. Where they are fewer than the devices, each goes alone. So it does on a CPU,
    which gains nothing from company."""
    devices, found = self._mesh.size, []
    alike: dict[tuple[int, int], list[int]] = {}
    for number, own in sizes.items():
      alike.setdefault(own.frame, []).append(number)
    for frame, numbers in alike.items():
      most = 1 if self._compute.platform == "cpu" and devices == 1 else self.autoencoder.most(frame)
      while numbers:
        each = min(most, len(numbers)) // devices
        size = devices << (each.bit_length() - 1) if each else 1
        found.append(numbers[:size])
        numbers = numbers[size:]
    return found


def _not_finite() -> UserError:
  return UserError("the result has values that are not finite")


def _sides(task: Task, numbers: Sequence[int]) -> Int[np.ndarray, "b 2"]:
  """The heights and widths of pictures, in latent pixels."""
  return np.array([task.sizes[number].latent for number in numbers], np.int32)


# What is small is compiled in few programs: each costs a start of the process some 20 ms, whatever it does.


@jax.jit
def _batch(pictures: list[Float[Array, "h w 3"]]) -> tuple[Float[Array, "b h w 3"], Float[Array, "b h w 3"]]:
  """One batch of pictures in [0, 1], and it in [-1, 1]."""
  lr = jnp.stack(pictures)
  return lr, lr * 2 - 1


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _lay_latents(
  config: ModelConfig,
  start_noise: float | Float[Array, ""],
  moments: Float[Array, "b h w m"],
  keys: Sequence[Key[Array, ""]],
  low: Float[Array, "H W c"],
  tops: Int[Array, " b"],
  first: Int[Array, ""],
) -> Float[Array, "H W c"]:
  """Lays LR pictures' latents on a sheet, where pictures begin at the rows `tops`: their rows from `first` on."""
  assert config.autoencoder is not None
  b, h, w, _ = moments.shape
  channels = config.autoencoder.latent_channels
  noise = frames.Noise(keys, jnp.repeat(jnp.arange(b), h), first + jnp.tile(jnp.arange(h), b), (w, channels))
  drawn = start_noise * noise(_POSTERIOR).reshape(b, h, w, channels)
  latents = config.autoencoder.scale_factor * sample_posterior(moments, drawn)
  return tiling.lay(low, latents, tops + first)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _noised(
  config: ModelConfig,
  start_step: int,
  start_noise: float | Float[Array, ""],
  low: Float[Array, "H W c"],
  noise: frames.Noise,
) -> Float[Array, "H W c"]:
  """The sheet that sampling starts from: the LR pictures' latents, noised."""
  return add_noise(config.diffusion, low, start_noise * noise(_START), start_step)


def _step_noise(noise: frames.Noise, number: jax.Array) -> Float[Array, "h w c"]:
  return noise(_STEPS, number)


def _bands(moments: Float[np.ndarray, "h w m"]) -> Iterator[tuple[int, Float[np.ndarray, "_ w m"]]]:
  """Rows of what is large, and the first one's number: a device needs no second copy. All bands are of one shape."""
  rows = min(max(_BAND // moments[0].size, 1), len(moments))
  for top in range(0, len(moments), rows):
    top = min(top, len(moments) - rows)
    yield top, moments[top : top + rows]


@jax.jit
def _lay(sheet: jax.Array, canvases: jax.Array, tops: jax.Array) -> jax.Array:
  return tiling.lay(sheet, canvases, tops)


@jax.jit
def _finite_rows(sheet: Float[Array, "h w c"]) -> Bool[Array, " h"]:
  return jnp.isfinite(sheet).all(axis=(1, 2))


@functools.partial(jax.jit, static_argnames="color_fix")
def _finish(
  decoded: Float[Array, "b h w 3"],
  lr: Float[Array, "b h w 3"],
  canvas: Int[Array, "b 2"],
  weight: Float[Array, ""],
  *,
  color_fix: str,
) -> tuple[Float[Array, "b h w 3"], Bool[Array, " b"]]:
  """The decoder's pictures in [0, 1], in the colours of `lr`; and whether all of the decoder's values were finite."""
  rows, columns = (jnp.arange(decoded.shape[axis])[None] < canvas[:, axis - 1, None] for axis in (1, 2))
  inside = (rows[:, :, None] & columns[:, None, :])[..., None]
  finite = (jnp.isfinite(decoded) | ~inside).all(axis=(1, 2, 3))
  return jnp.clip(color.fix((decoded + 1) / 2, lr, color_fix, canvas, weight), 0, 1), finite
