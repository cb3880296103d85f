"""Makes the set that CFW is trained on (3.2), with the trained restorer, on all devices of all hosts."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from stablesr_jax.compilation import compiler_options
from stablesr_jax.data import make_dataset
from stablesr_jax.data.cfw_set import sample_path, write_sample
from stablesr_jax.degradation import degrade_pairs
from stablesr_jax.errors import UserError
from stablesr_jax.files import make_folder
from stablesr_jax.models.parameters import Params
from stablesr_jax.parallel import batched, data_mesh, for_devices, replicated
from stablesr_jax.pixels import enlarge, to_uint8
from stablesr_jax.training.config import CfwDataStage, TrainConfig
from stablesr_jax.training.randomness import keys_for, sample_keys
from stablesr_jax.training.run_folder import note_config, only_run
from stablesr_jax.training.stages.restorer import RestorerTrainer
from stablesr_jax.training.stopping import StopRequest


def make_cfw_set(config: TrainConfig, folder: pathlib.Path) -> bool:
  """Writes `stage.count` samples into `folder`; those that are there already stay as they are.

  Sample i is always the same: it depends on the config and i alone. All hosts must see the same folder.

  Returns:
    Whether the set is complete: False if it was told to stop.

  Raises:
    UserError: something in the config, the data or the model does not fit, or another run is at work in the folder;
      one line that names it.
    KeyboardInterrupt: Ctrl-C told it to stop.
  """
  mesh, size = data_mesh(), config.batch_size
  if size % mesh.size:
    raise UserError(f"batch-size {size}: must be a multiple of {mesh.size}, the number of devices")
  config = dataclasses.replace(config, compute=for_devices(config.compute, mesh))
  stage = RestorerTrainer(config, mesh)
  make_folder(folder)
  with only_run(folder), StopRequest() as stop:
    complete = _make_missing(config, folder, stage, mesh, stop)
  if not complete:
    stop.raise_interrupted()
  return complete


def _make_missing(
  config: TrainConfig, folder: pathlib.Path, stage: RestorerTrainer, mesh: jax.sharding.Mesh, stop: StopRequest
) -> bool:
  assert isinstance(config.stage, CfwDataStage)
  count, size = config.stage.count, config.batch_size
  process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
  for change in note_config(folder, config):
    print(f"changed: {change}; the samples that are there stay as they are", file=sys.stderr)
  params = stage.pretrained()
  make = _maker(stage, config, mesh)
  missing = _missing_batches(folder, count, size)
  rows = size // jax.process_count()  # of this process in a batch
  with contextlib.closing(make_dataset(config.data, size, **process)) as data:
    for number in tqdm(missing, unit="batch", disable=None if jax.process_index() == 0 else True):
      if data.get_state() != {"batches": number}:
        data.set_state({"batches": number})
      images = jax.make_array_from_process_local_data(batched(mesh), next(data)["hr"])
      made = {name: _local(array) for name, array in make(params, stage.frozen, images, np.int32(number)).items()}
      first = number * size + jax.process_index() * rows
      for row in range(rows):
        if first + row < count and not sample_path(folder, first + row).exists():
          write_sample(folder, first + row, {name: array[row] for name, array in made.items()})
      if stop.after(number):
        print("told to stop: the same command goes on from here", file=sys.stderr)
        return False
  return True


def _maker(stage: RestorerTrainer, config: TrainConfig, mesh: jax.sharding.Mesh) -> Callable[..., dict[str, jax.Array]]:
  """(params, frozen, HR images uint8, batch's number) -> the batch's samples."""
  assert isinstance(config.stage, CfwDataStage)
  settings = config.stage.degradation
  spec = jax.P("data")

  def degrade(keys: jax.Array, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    hr, low = degrade_pairs(
      keys_for(keys, 0), images.astype(np.float32) / 255, settings, platform=config.compute.platform
    )
    # CFW learns from what the files hold, and so does the restorer sample from it.
    return to_uint8(hr), to_uint8(low)

  degrade = jax.shard_map(degrade, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)

  def make(params: Params, frozen: Params, images: jax.Array, number: jax.Array) -> dict[str, jax.Array]:
    keys = jax.lax.with_sharding_constraint(sample_keys(config.seed, number, len(images)), batched(mesh))
    hr, low = degrade(keys, images)
    enlarged = enlarge(low.astype(np.float32) / 255, hr.shape[1:3]) * 2 - 1
    latent = stage.sample(params, frozen, enlarged, keys, config.sampling)
    return {"hr": hr, "lr": low, "latent": latent}

  return jax.jit(
    make,
    in_shardings=(replicated(mesh), replicated(mesh), batched(mesh), replicated(mesh)),
    out_shardings=batched(mesh),
    compiler_options=compiler_options(config.compute.platform),
  )


def _missing_batches(folder: pathlib.Path, count: int, size: int) -> list[int]:
  """The batches of which a sample is missing; what the first process sees holds for all."""
  made = np.array([sample_path(folder, number).exists() for number in range(count)])
  missing = np.array([not made[first : first + size].all() for first in range(0, count, size)])
  if jax.process_count() > 1:
    missing = multihost_utils.broadcast_one_to_all(missing)
  return np.flatnonzero(missing).tolist()


def _local(array: jax.Array) -> np.ndarray:
  """This process's rows."""
  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])
