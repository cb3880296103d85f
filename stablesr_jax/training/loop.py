"""The training loop of all stages that train parameters. Reads from top to bottom."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from stablesr_jax.checkpoints.store import require_replaceable
from stablesr_jax.data import Batches, make_dataset
from stablesr_jax.errors import UserError
from stablesr_jax.evaluation.metrics import psnr_y, ssim_y
from stablesr_jax.files import make_folder, require_writable
from stablesr_jax.models.parameters import Params, merge
from stablesr_jax.parallel import batched, data_mesh, for_devices
from stablesr_jax.training import state as states
from stablesr_jax.training.checkpointing import Checkpoints, saved_steps
from stablesr_jax.training.config import (
  AutoencoderStage,
  CfwStage,
  OneStepStage,
  PriorStage,
  RestorerStage,
  TrainConfig,
)
from stablesr_jax.training.logged import Means
from stablesr_jax.training.metric_writer import MetricWriter, means
from stablesr_jax.training.model_export import export
from stablesr_jax.training.randomness import sample_keys
from stablesr_jax.training.run_folder import note_config, only_run
from stablesr_jax.training.stage import Batch, TrainedStage
from stablesr_jax.training.stages.autoencoder import AutoencoderTrainer
from stablesr_jax.training.stages.cfw import CfwTrainer
from stablesr_jax.training.stages.one_step import OneStepTrainer
from stablesr_jax.training.stages.prior import PriorTrainer
from stablesr_jax.training.stages.restorer import RestorerTrainer
from stablesr_jax.training.stopping import StopRequest

STAGES = {
  AutoencoderStage: AutoencoderTrainer,
  PriorStage: PriorTrainer,
  RestorerStage: RestorerTrainer,
  CfwStage: CfwTrainer,
  OneStepStage: OneStepTrainer,
}

Validate = Callable[[Params], tuple[dict[str, float], dict[str, np.ndarray]]]


class Diverged(UserError):
  """The loss or its gradient was not finite for too long."""


def train(config: TrainConfig, folder: pathlib.Path, *, export_only: bool = False) -> bool:
  """Trains, or goes on training, in `folder`, and writes the trained model to `folder/model`.

  Args:
    export_only: Whether no step is taken; writes the model as of the last checkpoint.

  Returns:
    Whether the run is complete: False if it was told to stop. It can be resumed.

  Raises:
    UserError: Something in the config, the data or the starting model does not fit, or another run is at work in the
      folder; one line that names it.
    Diverged: The last steps changed nothing.
    KeyboardInterrupt: Ctrl-C told it to stop; after the first step a checkpoint is saved before.
  """
  if export_only and not saved_steps(folder):
    raise UserError(f"{folder}: has no checkpoint to export")
  require_writable(folder)
  require_replaceable(folder / "model")
  mesh = data_mesh()
  config = dataclasses.replace(config, compute=for_devices(config.compute, mesh))
  _check_batch(config, mesh)
  process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
  data = make_dataset(config.data, config.batch_size, **process)
  stage: TrainedStage = STAGES[type(config.stage)](config, mesh)
  make_folder(folder)
  with only_run(folder), StopRequest() as stop:
    complete = _train(config, folder, stage, mesh, data, stop, export_only=export_only)
  if not complete:
    stop.raise_interrupted()
  return complete


def _train(
  config: TrainConfig,
  folder: pathlib.Path,
  stage: TrainedStage,
  mesh: jax.sharding.Mesh,
  data: Batches,
  stop: StopRequest,
  *,
  export_only: bool,
) -> bool:
  for change in note_config(folder, config):
    _say(f"changed: {change}")
  _say(describe(config, stage, mesh))

  def fresh(key: jax.Array) -> states.TrainState:
    return states.create(config, stage.init(key))

  abstract = jax.eval_shape(fresh, jax.random.key(0))
  shardings = states.shardings(config, abstract, mesh)
  abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)

  with Checkpoints(folder, config) as checkpoints:
    if checkpoints.latest is not None:
      state = checkpoints.restore(abstract, data)
      _say(f"resumed from step {checkpoints.latest}")
    elif export_only:
      raise UserError(f"{folder}: has no checkpoint to export")
    else:
      state = jax.jit(lambda: fresh(jax.random.key(config.seed)), out_shardings=shardings)()
      state = _with_pretrained(state, stage.pretrained(), config, shardings)
    start = int(state.step)
    complete = True
    if start < config.steps and not export_only:
      writer = MetricWriter(folder, start) if jax.process_index() == 0 else None
      try:
        state, complete = _run(config, stage, mesh, state, shardings, data, checkpoints, stop, writer)
      finally:
        if writer is not None:
          writer.close()
    if complete:
      batch = lambda: _prepared(stage, config, mesh, _to_devices(next(data), mesh))
      export(stage, state.averaged, batch, config, mesh, folder / "model")
      _say(f"{folder / 'model'}: written")
    data.close()
  return complete


def _run(
  config: TrainConfig,
  stage: TrainedStage,
  mesh: jax.sharding.Mesh,
  state: states.TrainState,
  shardings: states.TrainState,
  data: Batches,
  checkpoints: Checkpoints,
  stop: StopRequest,
  writer: MetricWriter | None,
) -> tuple[states.TrainState, bool]:
  validate = _validator(config, stage, mesh)
  add = jax.jit(lambda total, new: jax.tree.map(jnp.add, total, new))
  jitted, step_flops = states.make_step(stage, config, mesh, shardings), 0.0
  rate = states.learning_rate(config.optimizer, config.steps)
  compiled: jax.stages.Compiled | None = None
  total: Means | None = None
  began, counted = time.perf_counter(), 0
  start = int(state.step)
  bar = tqdm(total=config.steps, initial=start, unit="step", disable=None if writer else True)
  for number in range(start + 1, config.steps + 1):
    batch = _to_devices(next(data), mesh)
    if compiled is None:
      compiled = jitted.lower(state, stage.frozen, batch).compile()
      step_flops = _flops(compiled) * config.optimizer.accumulation
      began = time.perf_counter()
    state, new = compiled(state, stage.frozen, batch)
    total = new if total is None else add(total, new)
    counted += 1
    stopping = stop.after(number)
    last = number == config.steps or stopping
    if number % config.log_every == 0 or last:
      numbers = means(jax.device_get(total))  # waits for the step
      seconds = time.perf_counter() - began
      numbers |= {
        "learning_rate": float(np.asarray(rate(number - 1))),
        "skipped_steps": int(state.skipped),
        "unusable_images": len(data.bad_images()),
        "images_per_second": counted * config.batch_size / seconds,
        "tflops": counted * step_flops * mesh.size / seconds / 1e12,
        **_device_memory(),
      }
      if writer is not None:
        writer.write(number, numbers)
        bar.set_postfix(loss=f"{numbers.get('loss', float('nan')):.4f}", refresh=False)
      if int(state.bad_steps) >= config.max_bad_steps:
        good = checkpoints.latest
        raise Diverged(
          f"loss or gradient not finite for {int(state.bad_steps)} steps in a row, at step {number}; "
          + ("there is no checkpoint from before; " if good is None else f"last good one: {checkpoints.path(good)}; ")
          + "lower optimizer.learning-rate, set optimizer.clip-norm, or compute in float32"
        )
      total, counted, began = None, 0, time.perf_counter()
    if stopping:
      checkpoints.save(number, state, data)  # first of all: there may be little time left
    if (
      validate is not None
      and config.validation is not None
      and (number % config.validation.every == 0 or number == config.steps)
    ):
      numbers, pictures = validate(state.averaged)
      if writer is not None:
        writer.write(number, numbers)
        writer.grid(number, pictures)
      began = time.perf_counter() if counted == 0 else began
    # After the validation, which a run that is killed in it does again. What diverges is not worth keeping.
    if last or (checkpoints.due(number) and int(state.bad_steps) == 0):
      checkpoints.save(number, state, data)
    bar.update()
    if stopping and number < config.steps:
      _say(f"told to stop: step {number} is saved, the same command goes on from there")
      bar.close()
      return state, False
  bar.close()
  return state, True


def describe(config: TrainConfig, stage: TrainedStage, mesh: jax.sharding.Mesh) -> str:
  """Sizes of what is trained and of a batch, in a line each."""
  trained = jax.eval_shape(stage.init, jax.random.key(0))
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  each = ", ".join(f"{name} {count(tree) / 1e6:.2f} M" for name, tree in trained.items())
  parts = config.optimizer.accumulation
  return (
    f"trained parameters: {count(trained) / 1e6:.2f} M ({each}); frozen: {count(stage.frozen) / 1e6:.2f} M\n"
    f"effective batch: {config.batch_size} = {mesh.size} devices x {config.batch_size // parts // mesh.size} samples "
    f"x {parts} accumulated"
  )


def _check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
  parts = config.optimizer.accumulation
  if config.batch_size % (parts * mesh.size):
    raise UserError(
      f"batch-size {config.batch_size}: must be a multiple of {parts * mesh.size} "
      f"({mesh.size} devices x accumulation {parts})"
    )


def _with_pretrained(
  state: states.TrainState, values: Params, config: TrainConfig, shardings: states.TrainState
) -> states.TrainState:
  """The fresh state with a starting model's parameters in their places."""
  if not jax.tree.leaves(values):
    return state
  params = jax.jit(merge, out_shardings=shardings.params)(state.params, values)
  return jax.jit(lambda p: states.create(config, p), out_shardings=shardings)(params)


def _to_devices(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  """This process's rows as its part of the global batch."""
  return {name: jax.make_array_from_process_local_data(batched(mesh), rows) for name, rows in batch.items()}


def _prepared(stage: TrainedStage, config: TrainConfig, mesh: jax.sharding.Mesh, batch: Batch) -> Batch:
  count = len(next(iter(batch.values())))
  prepare = lambda batch: states.prepare(stage, mesh, batch, sample_keys(config.seed, 0, count))
  return jax.jit(prepare, in_shardings=batched(mesh), out_shardings=batched(mesh))(batch)


def _validator(config: TrainConfig, stage: TrainedStage, mesh: jax.sharding.Mesh) -> Validate | None:
  """(params) -> numbers and pictures of the validation images; both on the host."""
  if config.validation is None:
    return None
  settings = config.validation
  count = -(-settings.images // mesh.size) * mesh.size
  process = {"process_index": jax.process_index(), "process_count": jax.process_count()}
  data = make_dataset(settings.data, count, **process)
  batch = _prepared(stage, config, mesh, _to_devices(next(data), mesh))
  data.close()

  @jax.jit
  def pictures(params: Params, frozen: Params, batch: Batch) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    keys = sample_keys(config.seed, 0, count)
    shown = stage.validate(params, frozen, batch, keys)
    compared = {name: shown[name] for name in shown if name != "hr" and "ours" in shown}
    numbers = {f"validation/psnr/{name}": psnr_y(picture, shown["hr"]) for name, picture in compared.items()}
    numbers |= {f"validation/ssim/{name}": ssim_y(picture, shown["hr"]) for name, picture in compared.items()}
    return {name: jnp.mean(values[: settings.images]) for name, values in numbers.items()}, shown

  def validate(params: Params) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    numbers, shown = pictures(params, stage.frozen, batch)
    if jax.process_count() > 1:
      shown = {name: multihost_utils.process_allgather(picture, tiled=True) for name, picture in shown.items()}
    # JAX sorts a dictionary's keys; a grid reads from the input to the original.
    order = sorted(shown, key=lambda name: (name == "hr") * 2 + (name == "ours"))
    host = {name: np.asarray(shown[name])[: settings.images] for name in order}
    return {name: float(value) for name, value in numbers.items()}, host

  return validate


def _flops(compiled: jax.stages.Compiled) -> float:
  """Operations of a step on each device, accumulated parts counted once, as XLA counts them."""
  analysis = compiled.cost_analysis() or {}
  return float(analysis.get("flops", 0.0))


def _device_memory() -> dict[str, float]:
  stats = jax.local_devices()[0].memory_stats() or {}
  return {"device_memory_peak_gib": stats["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in stats else {}


def _say(message: str) -> None:
  if jax.process_index() == 0:
    print(message, file=sys.stderr, flush=True)
