"""Batches of crops: the same ones in the same order for any number of hosts, workers and restarts."""

import asyncio
import dataclasses
import itertools
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from stablesr_jax.data.config import DataConfig
from stablesr_jax.data.image_sources import Record, Source, open_source, require
from stablesr_jax.errors import UserError
from stablesr_jax.images import decode_image

_MAX_SUBSTITUTES = 1000
_BAD_IMAGES_LOGGED = 5
_WORKERS_OF_A_CORE = 8

log = logging.getLogger(__name__)


def make_dataset(
  config: DataConfig, global_batch: int, *, process_index: int, process_count: int, seed: int | None = None
) -> "Batches":
  """This process's part of an endless sequence of shuffled batches.

  The global batches are the same for any number of processes: process p has the p-th block of rows of each.

  Args:
    global_batch: The samples of a batch of all processes together, a multiple of `process_count`.
    process_index: `jax.process_index()`.
    process_count: `jax.process_count()`. All processes must see the same data.
    seed: The seed in place of the one in `config`.

  Raises:
    UserError: as `open_source`; or the numbers do not fit each other.
  """
  if process_count < 1 or not 0 <= process_index < process_count:
    raise UserError(f"process_index {process_index}: must be 0 to process_count - 1 ({process_count - 1})")
  if global_batch < 1 or global_batch % process_count:
    raise UserError(f"global_batch {global_batch}: must be a multiple of {process_count}, the number of processes")
  if seed is not None:
    config = dataclasses.replace(config, seed=seed)
  grain = require("grain")
  sources = [open_source(source, config.scale) for source in config.sources]
  weights = [source.weight or len(opened) for source, opened in zip(config.sources, sources, strict=True)]
  sample_seed, *shuffle_seeds = np.random.SeedSequence(config.seed).generate_state(1 + len(sources)).tolist()

  # (number of the source, number of the record in it), endless
  records = [
    grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).map(lambda index, k=k: (k, index)).repeat()
    for k, (source, shuffle_seed) in enumerate(zip(sources, shuffle_seeds, strict=True))
  ]
  samples = grain.MapDataset.mix(records, weights).random_map(_Sampler(sources, config), seed=sample_seed)
  blocks = samples.batch(global_batch // process_count, drop_remainder=True, batch_fn=_stack)
  # After all that is random: what a sample is depends on its place in the global order alone.
  return Batches(blocks[process_index::process_count], config, process_index)


class Batches(Iterator[dict[str, np.ndarray]]):
  """Endless iterator over one process's blocks of batches, made by `make_dataset`. A checkpointable of Orbax.

  Each is {"hr": (B, S, S, 3) uint8} and for pairs also {"lr": (B, S / scale, S / scale, 3) uint8}, sRGB in 0 to 255;
  S is `crop_size`. The state is the number of batches given out: it is valid for another number of hosts or workers.
  """

  def __init__(self, blocks: Any, config: DataConfig, process_index: int):
    self._blocks, self._config, self._process_index = blocks, config, process_index
    self._next = 0
    self._iterator: Any = None
    self._bad: dict[str, None] = {}  # an ordered set

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      self._iterator = self._open()
    batch = next(self._iterator)
    self._next += 1
    self._report(batch.pop("bad"))
    return batch

  def bad_images(self) -> tuple[str, ...]:
    """The images that this process met and could not use so far: a line for each, with name and reason."""
    return tuple(self._bad)

  def close(self) -> None:
    """Ends worker processes and threads. The next batch starts them again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def get_state(self) -> dict[str, int]:
    return {"batches": self._next}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes on after as many batches as at the time of `get_state`.

    Raises:
      UserError: it is no state of such an iterator.
    """
    batches = state.get("batches") if isinstance(state, dict) else None
    if not isinstance(batches, int) or batches < 0:
      raise UserError(f"not a state of the data pipeline: {state!r}")
    self.close()
    self._next = batches

  async def save(self, directory: Any) -> Any:
    """Orbax: takes the state now and returns what writes it in the background."""
    state = json.dumps(self.get_state())

    async def write():
      folder = await directory.await_creation()
      await asyncio.to_thread((folder / f"process_{self._process_index}.json").write_text, state)

    return write()

  async def load(self, directory: Any) -> Any:
    """Orbax: returns what reads and sets a saved state."""

    async def read():
      # The same on all hosts; perhaps there were others then.
      files = await asyncio.to_thread(lambda: sorted(directory.glob("process_*.json")))
      if not files:
        raise UserError(f"{directory}: holds no state of the data pipeline")
      self.set_state(json.loads(await asyncio.to_thread(files[0].read_text)))

    return read()

  def _open(self) -> Any:
    grain = require("grain")
    workers, prefetch = self._config.workers, self._config.prefetch
    if workers > (most := _WORKERS_OF_A_CORE * (os.cpu_count() or 1)):
      raise UserError(f"data.workers {workers}: must be at most {most} on this machine, {_WORKERS_OF_A_CORE} a core")
    if not workers:
      return iter(self._blocks[self._next :].to_iter_dataset(grain.ReadOptions(prefetch, prefetch)))
    flags = require("absl.flags").FLAGS  # Grain reads some before it starts processes.
    if not flags.is_parsed():
      flags.mark_as_parsed()
    in_order = self._blocks[self._next :].to_iter_dataset(grain.ReadOptions(0, 0))
    return iter(in_order.mp_prefetch(grain.MultiprocessingOptions(workers, prefetch)))

  def _report(self, bad: Sequence[str]) -> None:
    for line in bad:
      if line in self._bad:
        continue
      self._bad[line] = None
      count = len(self._bad)
      if count <= _BAD_IMAGES_LOGGED:
        log.warning("another image is used in place of %s", line)
      elif count == 10 ** (len(str(count)) - 1):  # 10, 100, 1000, ...
        log.warning("%d images could not be used so far", count)


class _Sampler:
  """Reads a record and cuts a sample from it; another one in its place where that cannot be done.

  What comes in place of a bad image depends on the sample's own random numbers only, so all other samples stay as
  they were.
  """

  def __init__(self, sources: Sequence[Source], config: DataConfig):
    self._sources, self._config = sources, config
    self._known_bad: dict[tuple[int, int], str] = {}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """In a worker process, which the main process ends: a terminal sends Ctrl-C to it as well."""
    self.__dict__.update(state)
    if multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread():
      signal.signal(signal.SIGINT, signal.SIG_IGN)

  def __call__(self, record: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    k, index = record
    bad: list[str] = []
    for candidate in itertools.islice(self._candidates(k, index, rng), _MAX_SUBSTITUTES):
      if line := self._known_bad.get((k, candidate)):
        bad.append(line)
        continue
      try:
        found = self._sources[k][candidate]
        if found.sample is not None:
          return {**_ready(found, self._config), "bad": tuple(bad)}
        hr, lr = _decode(found, self._config)
      except UserError as error:
        self._known_bad[k, candidate] = line = str(error)
        bad.append(line)
        continue
      # The first use of `rng` for the sample itself: it does not matter which bad images were known.
      return {**_cut(hr, lr, self._config, rng), "bad": tuple(bad)}
    raise UserError(f"{', '.join(self._config.sources[k].path)}: no usable image among {len(set(bad))}: {bad[0]}")

  def _candidates(self, k: int, index: int, rng: np.random.Generator) -> Iterator[int]:
    """`index`, then all others from a random one on."""
    yield index
    count = len(self._sources[k])
    start = int(rng.integers(count))
    yield from ((start + i) % count for i in range(count))


def _ready(record: Record, config: DataConfig) -> dict[str, np.ndarray]:
  """A sample that needs no cutting.

  Raises:
    UserError: it is not of the crop's size.
  """
  assert record.sample is not None
  height, width = record.sample["hr"].shape[:2]
  if height != config.crop_size or width != config.crop_size:
    raise UserError(f"{record.name}: {width}x{height}, but crop_size is {config.crop_size}")
  return record.sample


def _decode(record: Record, config: DataConfig) -> tuple[np.ndarray, np.ndarray | None]:
  """(H, W, 3) and (H / scale, W / scale, 3) or None, float32 in [0, 1].

  Raises:
    UserError: an image is damaged, too small to be used, or not of its partner's size.
  """
  hr, lr = _read_rgb(record.hr, record.name), None
  height, width = hr.shape[:2]
  if record.lr is not None:
    lr = _read_rgb(record.lr, f"{record.name} (low resolution)")
    if (lr.shape[0] * config.scale, lr.shape[1] * config.scale) != (height, width):
      size = f"{lr.shape[1]}x{lr.shape[0]}"
      raise UserError(
        f"{record.name}: {width}x{height} is not {config.scale} times its low-resolution partner's {size}"
      )
  if config.small_images == "skip" and min(height, width) < config.crop_size:
    raise UserError(f"{record.name}: {width}x{height} is smaller than the crop of {config.crop_size}")
  return hr, lr


def _read_rgb(data: bytes, name: str) -> np.ndarray:
  """(H, W, 3) float32 in [0, 1]; alpha is laid over white."""
  picture = decode_image(data, name)
  if picture.alpha is None:
    return picture.rgb
  opacity = picture.alpha[..., None]
  return picture.rgb * opacity + (1 - opacity)


def _cut(hr: np.ndarray, lr: np.ndarray | None, config: DataConfig, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """A sample from (H, W, 3) and for pairs (H / scale, W / scale, 3), float32 in [0, 1]."""
  from stablesr_jax.pixels import to_uint8  # Late: it imports JAX, and `--help` should answer at once.

  pixel = 1 if lr is None else config.scale  # pairs are cut along the LR image's pixels
  height, width = hr.shape[0] // pixel, hr.shape[1] // pixel
  side = config.crop_size // pixel
  # A larger window is shrunk to the crop, a smaller one enlarged.
  wanted = round(side / rng.uniform(*config.scale_range))
  window = min(wanted, height, width)
  if config.small_images == "pad":
    window = max(window, min(wanted, side))
  top = int(rng.integers(max(height - window, 0) + 1))
  left = int(rng.integers(max(width - window, 0) + 1))
  flip = config.flips and rng.random() < 0.5

  def cut(image: np.ndarray, pixel: int, size: int) -> np.ndarray:
    region = image[top * pixel : (top + window) * pixel, left * pixel : (left + window) * pixel]
    region = to_uint8(region)
    missing = [(0, window * pixel - have) for have in region.shape[:2]]
    region = np.pad(region, [*missing, (0, 0)], mode="symmetric")
    if len(region) != size:
      region = np.asarray(Image.fromarray(region).resize((size, size), Image.Resampling.BICUBIC))
    return region[:, ::-1] if flip else region

  sample = {"hr": cut(hr, pixel, config.crop_size)}
  if lr is not None:
    sample["lr"] = cut(lr, 1, config.crop_size // config.scale)
  return sample


def _stack(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """A batch of samples; what they say of bad images is put together."""
  batch: dict[str, Any] = {key: np.stack([sample[key] for sample in samples]) for key in samples[0] if key != "bad"}
  return {**batch, "bad": tuple(itertools.chain.from_iterable(sample["bad"] for sample in samples))}
