"""What a training step needs of each device, found by compiling it: no weights and no such device are needed.

    python benchmarks/training_memory.py --config configs/stablesr_512.py --batches 1 4 8 16 24
    python benchmarks/training_memory.py --config configs/stablesr_512.py --topology v5p:2x2   # needs libtpu

Prints the sizes of what is trained, frozen and kept, and for each number of samples on a device, with and without
rematerialisation, XLA's own account of the memory: arguments (state, frozen parameters, batch) and temporaries.
The making of LR images is left out: it comes before, needs little, and takes long to compile. So is LPIPS.
On a CPU rematerialisation shows no gain: XLA's CPU backend computes nothing twice.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from stablesr_jax.checkpoints.store import MANIFEST, NULL_PROMPT, Manifest
from stablesr_jax.cli.train import load_config
from stablesr_jax.models.components import abstract_params
from stablesr_jax.models.parameters import flat, is_cfw, is_modulation, split
from stablesr_jax.parallel import batched, data_mesh, for_devices, platform, replicated
from stablesr_jax.settings import to_json
from stablesr_jax.training import state as states
from stablesr_jax.training.config import CfwStage, OneStepStage, TrainConfig
from stablesr_jax.training.stages.cfw import CfwTrainer
from stablesr_jax.training.stages.one_step import PARTS, OneStepTrainer
from stablesr_jax.training.stages.restorer import RestorerTrainer


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", type=pathlib.Path, default=pathlib.Path("configs/stablesr_512.py"))
  parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 24], help="samples on a device")
  parser.add_argument("--topology", help="a TPU slice to compile for, as v5p:2x2; default: the devices here")
  parser.add_argument("--sharding", choices=["replicated", "fsdp"], default="replicated")
  parser.add_argument("--json", type=pathlib.Path)
  args = parser.parse_args()
  config = dataclasses.replace(load_config(args.config), sharding=args.sharding, validation=None)
  mesh = data_mesh(_devices(args.topology))
  rows = []
  for batch in args.batches:
    for remat in (False, True):
      row = measure(config, mesh, batch, remat)
      if not rows:
        print(f"{args.config.stem} on {mesh.size} x {mesh.devices.flat[0].device_kind}, {args.sharding}")
        print(
          "  "
          + ", ".join(f"{name} {row[name]}" for name in row if name.endswith(("_m", "_gib")) and "peak" not in name)
        )
      rows.append(row)
      what = f"{row['peak_gib']:.1f} GiB" if row["peak_gib"] else row["error"]
      print(
        f"  {batch:3d} a device, remat {'on ' if remat else 'off'}: {what} ({row['seconds']} s to compile)", flush=True
      )
  if args.json:
    args.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(config: TrainConfig, mesh: jax.sharding.Mesh, batch: int, remat: bool) -> dict[str, Any]:
  """Compiles a step of `batch` samples on each device. Bytes are of one device, in GiB; counts in millions."""
  began = time.perf_counter()
  config = dataclasses.replace(config, compute=dataclasses.replace(config.compute, remat=remat))
  traced, (state, frozen, data) = trace(config, mesh, batch)
  row = {
    "trained_m": round(_count(state.params) / 1e6, 2),
    "frozen_m": round(_count(frozen) / 1e6, 2),
    "state_gib": round(_bytes(state) / 2**30, 3),
    "frozen_gib": round(_bytes(frozen) / 2**30, 3),
    "batch": batch,
    "remat": remat,
    "tflop_a_sample": None,
    "peak_gib": None,
    "error": None,
  }
  lowered = traced.lower()
  row["tflop_a_sample"] = round((lowered.cost_analysis() or {}).get("flops", 0.0) / len(data["hr"]) / 1e12, 3)
  try:
    # Little effort for speed: a fifth of the time to compile for a TPU, and the memory the same to a few per cent.
    tpu = platform(mesh) == "tpu"
    memory = lowered.compile({"exec_time_optimization_effort": -1.0} if tpu else None).memory_analysis()
    # The state's new values take the old ones' place.
    row["peak_gib"] = round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**30, 2)
  except jax.errors.JaxRuntimeError as error:  # more than the device has
    row["error"] = str(error).splitlines()[0][:160]
  return row | {"seconds": round(time.perf_counter() - began)}


def trace(config: TrainConfig, mesh: jax.sharding.Mesh, batch: int) -> tuple[jax.stages.Traced, tuple[Any, Any, Any]]:
  """A step of `batch` samples on each device, as it is computed on the mesh's kind of devices, and what it takes."""
  optimizer = dataclasses.replace(config.optimizer, accumulation=1)
  compute = for_devices(config.compute, mesh)
  config = dataclasses.replace(config, optimizer=optimizer, compute=compute, batch_size=batch * mesh.size)
  with tempfile.TemporaryDirectory() as folder:
    stage, frozen = _stage(config, mesh, pathlib.Path(folder))
  stage.prepare = lambda batch, keys: batch
  abstract = jax.eval_shape(lambda key: states.create(config, stage.init(key)), jax.random.key(0))
  shardings = states.shardings(config, abstract, mesh)
  place = lambda tree, sharding: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
  state = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
  arguments = state, place(frozen, replicated(mesh)), place(_batch(config), batched(mesh))
  return states.make_step(stage, config, mesh, shardings).trace(*arguments), arguments


def _stage(config: TrainConfig, mesh: jax.sharding.Mesh, folder: pathlib.Path) -> tuple[Any, Any]:
  """The stage, and its frozen parameters in shapes alone."""
  architecture = dataclasses.replace(config.model, text_encoder=None)
  (folder / MANIFEST).write_text(json.dumps(to_json(Manifest("shapes", architecture))))
  config = dataclasses.replace(config, model_path=str(folder))
  shapes = lambda part: abstract_params(architecture, part)
  if isinstance(config.stage, CfwStage | OneStepStage):
    config = dataclasses.replace(config, stage=dataclasses.replace(config.stage, perceptual_weight=0.0))
  if isinstance(config.stage, CfwStage):
    frozen = {"autoencoder": split(shapes("autoencoder"), is_cfw)[1]}
    return CfwTrainer(config, mesh), _half(frozen)
  assert config.model.unet is not None
  prompt = jax.ShapeDtypeStruct((77, config.model.unet.context_dim), np.float32)
  if isinstance(config.stage, OneStepStage):
    stage = OneStepTrainer(config, mesh)
    trained = jax.eval_shape(stage.init, jax.random.key(0))
    rest = lambda part: split(shapes(part), lambda path: path not in flat(trained[part]))[0]
    return stage, _half({part: rest(part) for part in PARTS} | {NULL_PROMPT: prompt})
  unet = split(shapes("unet"), is_modulation)[1]
  return RestorerTrainer(config, mesh), _half({"autoencoder": shapes("autoencoder"), "unet": unet, NULL_PROMPT: prompt})


def _half(tree: Any) -> Any:
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jax.numpy.bfloat16), tree)


def _batch(config: TrainConfig) -> dict[str, Any]:
  """What `prepare` gives."""
  side, autoencoder = config.data.crop_size, config.model.autoencoder
  assert autoencoder is not None
  image = jax.ShapeDtypeStruct((config.batch_size, side, side, 3), np.float32)
  small = side // autoencoder.downsampling
  latent = jax.ShapeDtypeStruct((config.batch_size, small, small, autoencoder.latent_channels), np.float32)
  return {"hr": image, "lr": image} | ({"latent": latent} if isinstance(config.stage, CfwStage) else {})


def _devices(topology: str | None) -> Any:
  if topology is None:
    return None
  from jax.experimental import topologies

  return list(topologies.get_topology_desc(topology, platform="tpu").devices)


def _count(tree: Any) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _bytes(tree: Any) -> int:
  """On one device."""
  leaves = jax.tree.leaves(tree)
  return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


if __name__ == "__main__":
  main()
