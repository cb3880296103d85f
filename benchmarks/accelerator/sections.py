"""The sections. `python -m benchmarks.accelerator.sections NAME --cases ...` is one process; plan.py has the cases.

What is no line of JSON goes to standard error.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.accelerator.measuring import Run, clock, memory, millions, narrow, photograph
from benchmarks.accelerator.trace import slowest
from stablesr_jax import SamplingConfig, StableSR
from stablesr_jax.checkpoints.store import MANIFEST, NULL_PROMPT, Manifest
from stablesr_jax.compilation import enable_cache
from stablesr_jax.degradation import PRESETS, degrade
from stablesr_jax.diffusion import samplers
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.inference.tiled_autoencoder import TiledAutoencoder
from stablesr_jax.inference.tiling import Sheet
from stablesr_jax.models.parameters import is_cfw, is_modulation, split
from stablesr_jax.parallel import replicated
from stablesr_jax.settings import to_json

ROOT = pathlib.Path(__file__).parents[2]
SCALE = 4
# Of one 64x64 tile, as XLA counts the whole program: ours (time-aware encoder, SFT and UNet), and the plain UNet.
TFLOP_A_TILE, PLAIN_TFLOP_A_TILE = 0.961, 0.80
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "torch", "diffusers", "pytest")


def device(run: Run) -> None:
  """Versions, and what the other sections run on."""
  versions = {}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  run.row("versions", python=sys.version.split()[0], **versions)
  first = run.mesh.devices.flat[0]
  gib = (first.memory_stats() or {}).get("bytes_limit", 0) / 2**30
  run.row("device", kind=first.device_kind, platform=first.platform, devices=jax.device_count(), cores=os.cpu_count(),
          memory_gib=gib)  # fmt: skip
  if first.platform == "gpu" and shutil.which("nvidia-smi"):
    with run.trying("driver"):
      query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit", "--format=csv"]
      told = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
      names, values = (line.split(", ") for line in told[:2])  # of the first one
      run.row("driver", **dict(zip(names, values, strict=True)))


def peak(run: Run) -> None:
  """What the device can do at best. Copies count the bytes that are read and those that are written."""
  n, size, repeats = (256, 2**20, 3) if run.tiny else (8192, 2**32, 10)
  work, moved = 2 * n**3 / 1e12, 2 * size / 1e12
  with run.trying("JAX, bfloat16 product"):
    a, b = (jax.device_put(jax.random.normal(jax.random.key(k), (n, n), jnp.bfloat16), run.mesh.devices.flat[0])
            for k in (0, 1))  # fmt: skip
    product = jax.jit(jnp.matmul)
    clock(lambda: product(a, b))
    run.row("JAX, bfloat16 product", n=n, tflops=work / run.seconds_queued(lambda: product(a, b), repeats))
  with run.trying("JAX, copy"):
    c = jnp.zeros(size // 4, jnp.uint32)
    copy = jax.jit(jnp.bitwise_not)  # of as many bytes
    clock(lambda: copy(c))
    run.row("JAX, copy", gib=size / 2**30, tb_s=moved / run.seconds_queued(lambda: copy(c), repeats))
    del c
  if not (torch := _torch(run)):
    return
  with run.trying("PyTorch, bfloat16 product"):
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    _, s = _torch_seconds(torch, lambda: torch.mm(a, b), repeats)
    run.row("PyTorch, bfloat16 product", n=n, tflops=work / s)
    c = torch.empty(size, device="cuda", dtype=torch.uint8)
    d = torch.empty_like(c)
    _, s = _torch_seconds(torch, lambda: d.copy_(c), repeats)
    run.row("PyTorch, copy", gib=size / 2**30, tb_s=moved / s)


def step(run: Run) -> None:
  """One denoising step of the full-size network: time-aware encoder, SFT and UNet."""
  params = _weights(run, "unet", "time_aware_encoder")
  for batch in run.affordable():
    with run.trying("step", batch=int(batch)):
      denoiser, args = _network(run, params, int(batch))
      began = time.perf_counter()
      lowered = denoiser.lower(*args)
      traced = time.perf_counter()
      compiled = lowered.compile()
      done = time.perf_counter()
      run.row("step, compiled", batch=int(batch), trace_s=traced - began, xla_s=done - traced, **memory(compiled))
      call = lambda: denoiser.predict(*args)  # noqa: B023
      first, finite = clock(call), bool(jnp.isfinite(call()).all())
      s, queued = run.seconds(call, 15), run.seconds_queued(call, 15)
      run.row("step", batch=int(batch), ms=1e3 * s, ms_queued=1e3 * queued, **_rates(run, TFLOP_A_TILE, batch, queued),
              ms_a_tile=1e3 * queued / int(batch), first_call_s=first, finite=finite)  # fmt: skip


def diffusers(run: Run) -> None:
  """PyTorch's peer: diffusers' UNet of Stable Diffusion 2.1, which has neither encoder nor SFT."""
  if not (torch := _torch(run)):
    return
  if importlib.util.find_spec("diffusers") is None:
    return run.row("left out", why="diffusers is not installed")
  from diffusers import UNet2DConditionModel

  with torch.device("cuda"):
    unet = UNet2DConditionModel(
      sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )  # fmt: skip
  unet = unet.to(dtype=torch.bfloat16, memory_format=torch.channels_last).eval().requires_grad_(False)
  compiled = torch.compile(unet, dynamic=False)
  for batch in map(int, run.affordable()):
    with run.trying("diffusers' UNet", batch=batch), torch.inference_mode():
      draw = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
      x = draw(batch, 4, 64, 64).to(memory_format=torch.channels_last)
      t, context = torch.full((batch,), 500, device="cuda"), draw(batch, 77, 1024)
      call = lambda: compiled(x, t, context).sample  # noqa: B023
      began = time.perf_counter()
      call()
      torch.cuda.synchronize()
      first = time.perf_counter() - began
      s, queued = _torch_seconds(torch, call, run.repeats(15))
      run.row("diffusers' UNet", batch=batch, ms=1e3 * s, ms_queued=1e3 * queued,
              **_rates(run, PLAIN_TFLOP_A_TILE, batch, queued), ms_a_tile=1e3 * queued / batch, first_call_s=first,
              process_peak_gib=torch.cuda.max_memory_allocated() / 2**30)  # fmt: skip


def autoencoder(run: Run) -> None:
  """Encoding and decoding with CFW: single pictures as the restorer does, and "4x512", several at once."""
  params = _weights(run, "autoencoder")["autoencoder"]
  whole = TiledAutoencoder(run.config.autoencoder, params, run.compute(), run.mesh, tile=2048)
  for case in run.affordable():
    *several, side = map(int, case.split("x"))
    about: dict[str, int] = {"side": side, "pictures": several[0] if several else 1}
    with run.trying("autoencoder", **about):
      images = jnp.stack([jnp.asarray(photograph(side, k) * 2 - 1) for k in range(about["pictures"])])
      sides = np.full((len(images), 2), side // run.config.autoencoder.downsampling, np.int32)
      encoding = lambda: whole.encode(images, sides)  # noqa: B023
      first = clock(encoding)
      run.row("encode", **about, ms=1e3 * run.seconds(encoding, 10), first_call_s=first)
      moments, features = encoding()
      latent = moments[..., : run.config.autoencoder.latent_channels].astype(jnp.float32)
      decoding = lambda: whole.decode(latent, sides, features, 0.5)  # noqa: B023
      first, finite = clock(decoding), bool(jnp.isfinite(decoding()).all())
      ms = 1e3 * run.seconds(decoding, 10)
      run.row("decode with CFW", **about, ms=ms, first_call_s=first, finite=finite)
      del moments, features, latent, encoding, decoding


def end_to_end(run: Run) -> None:
  """Pictures as a user restores them, from an array to an array."""
  params = _weights(run, "unet", "time_aware_encoder", "autoencoder")
  numbers = (1, 2) if run.tiny else (4, 1, 20, 200)
  model = StableSR(Manifest("random", run.config), params, compute=run.compute(), mesh=run.mesh)
  for pictures, steps in run.affordable([(int(pictures), steps) for pictures in run.cases for steps in numbers]):
    if run.compiling and pictures > 1 and steps != numbers[0]:
      continue  # what depends on the number of steps does not on that of pictures
    with run.trying("end to end", pictures=pictures, steps=steps):
      side = run.tile * model.autoencoder.config.downsampling // SCALE
      images, keys = [photograph(side, k) for k in range(pictures)], [jax.random.key(k) for k in range(pictures)]
      sampling = SamplingConfig(steps=steps, sampler="ddpm" if steps > 4 else "ddim", tile_size=run.tile)
      go = lambda: model.upscale_batch(images, scale=SCALE, keys=keys, sampling=sampling)  # noqa: B023
      first = clock(go)
      s = run.seconds(go, 1 if steps == 200 else 3)
      run.row("end to end", pictures=pictures, steps=steps, s=s, pictures_a_s=pictures / s, first_call_s=first)


def guidance(run: Run) -> None:
  """Both prompts are equal, so that guidance must change nothing but rounding: `difference`, to the result's RMS."""
  config = narrow(run.tiny)
  steps = samplers.plan(config.diffusion, SamplingConfig(steps=2, sampler="ddim"))
  draw = lambda k: jax.random.normal(jax.random.key(k), (16, 16, config.unet.latent_channels))
  for dtype in run.affordable():
    with run.trying("guidance", dtype=dtype):
      params = run.weights(config, "unet", "time_aware_encoder", dtype=dtype)
      denoiser = Denoiser(config, params, run.compute(dtype), run.mesh, 2)
      results = []
      for scale in (1.0, 3.0):
        prompts = jnp.stack([params[NULL_PROMPT]] * (1 if scale == 1 else 2))
        conditions = denoiser.condition(prompts, scale)
        sheet = Sheet.of([(16, 16)], [(16, 16)], (16, 16), 8)
        results.append(denoiser.sample(draw(0), draw(1), sheet, jax.tree_util.Partial(draw), steps, conditions))
      plain, guided = results
      difference = float(jnp.abs(guided - plain).max() / jnp.sqrt(jnp.square(plain).mean()))
      run.row("guidance", dtype=dtype, finite=bool(jnp.isfinite(guided).all()), difference=difference)


def embedded(run: Run) -> None:
  """The shipped model with its own settings. `examples/restored` was made on a CPU in float32; levels of 0 to 255."""
  names = sorted(path.stem for path in (ROOT / "examples/degraded").glob("*.png"))[: 1 if run.tiny else None]
  for case in run.affordable():
    precision, _, products = case.partition("_")
    with run.trying("embedded", precision=precision, products=products), jax.default_matmul_precision(products or None):
      began = time.perf_counter()
      model = StableSR.load(precision=precision, devices=list(run.mesh.devices.flat))
      loaded = time.perf_counter() - began
      for name in names:
        image = Image.open(ROOT / f"examples/degraded/{name}.png")
        wanted = np.asarray(Image.open(ROOT / f"examples/restored/{name}.png").convert("RGB"), np.int32)
        go = lambda: model.upscale(image, scale=SCALE)  # noqa: B023
        began = time.perf_counter()
        restored = go()
        first = time.perf_counter() - began
        s = first if run.tiny or run.compiling else clock(go)
        difference = np.abs(np.asarray(restored, np.int32) - wanted)
        run.row("embedded", precision=precision, products=products, picture=name, size=restored.size, s=s,
                largest_difference=int(difference.max()), mean_difference=float(difference.mean()),
                first_call_s=first, load_s=loaded)  # fmt: skip
        if run.output is not None and not run.compiling:
          restored.save(run.output / f"{name}_{case}.png")


def training(run: Run) -> None:
  """A step of the restorer's training: bfloat16, rematerialisation, average; without the making of LR images."""
  from stablesr_jax.data.config import DataConfig, SourceConfig
  from stablesr_jax.training import state as states
  from stablesr_jax.training.config import OptimizerConfig, RestorerStage, TrainConfig
  from stablesr_jax.training.stages.restorer import RestorerTrainer

  side = 64 if run.tiny else 512
  params, frozen = _training_params(run)
  for batch in map(int, run.affordable()):
    with run.trying("training", batch=batch), tempfile.TemporaryDirectory() as folder:
      (pathlib.Path(folder) / MANIFEST).write_text(json.dumps(to_json(Manifest("random", run.config))))
      config = TrainConfig(
        stage=RestorerStage(degradation=PRESETS["stablesr_512"]),
        data=DataConfig((SourceConfig("folder", ("none",)),), crop_size=side),
        model=run.config, model_path=folder, batch_size=batch, optimizer=OptimizerConfig(ema_decay=0.9999),
        compute=run.compute(remat=not run.tiny),
      )  # fmt: skip
      stage = RestorerTrainer(config, run.mesh)
      stage.prepare = lambda batch, keys: batch
      create = lambda params: states.create(config, jax.tree.map(jnp.copy, params))  # noqa: B023
      shardings = states.shardings(config, jax.eval_shape(create, params), run.mesh)
      state = jax.jit(create, out_shardings=shardings)(params)  # the step uses it up
      images = np.stack([photograph(side, k) for k in range(batch)]) * 2 - 1
      data = {"hr": jnp.asarray(images), "lr": jnp.asarray(np.roll(images, 1, axis=0) * np.float32(0.9))}
      began = time.perf_counter()
      compiled = states.make_step(stage, config, run.mesh, shardings).lower(state, frozen, data).compile()
      run.row("training, compiled", batch=batch, trace_and_xla_s=time.perf_counter() - began, **memory(compiled))
      state, means = compiled(state, frozen, data)
      jax.block_until_ready(state)
      repeats, began = run.repeats(5), time.perf_counter()
      for _ in range(repeats):
        state, means = compiled(state, frozen, data)
      jax.block_until_ready(state)
      s = (time.perf_counter() - began) / repeats
      run.row("training", batch=batch, ms=1e3 * s, images_a_s=batch / s, skipped_steps=int(state.skipped),
              loss=float(means["loss"][0] / means["loss"][1]), trained_millions=millions(params))  # fmt: skip
      del state, compiled


def _training_params(run: Run) -> tuple[Any, Any]:
  """What is trained, float32, and what is frozen, bfloat16."""
  trained = run.weights(run.config, "unet", "time_aware_encoder", dtype="float32")
  modulation, prior = split(trained["unet"], is_modulation)
  frozen = run.weights(run.config, "autoencoder")
  frozen["autoencoder"] = split(frozen["autoencoder"], is_cfw)[1]
  frozen["unet"] = jax.tree.map(lambda a: a.astype(jnp.bfloat16), prior)
  return {"time_aware_encoder": trained["time_aware_encoder"], "unet": modulation}, frozen


def degradation(run: Run) -> None:
  side = 64 if run.tiny else 512
  for batch in map(int, run.affordable()):
    with run.trying("degradation", batch=batch):
      images = jnp.stack([jnp.asarray(photograph(side, k)) for k in range(batch)])
      images, numbers = jax.device_put(images, replicated(run.mesh)), iter(range(1000))
      call = lambda: degrade(jax.random.key(next(numbers)), images, PRESETS["stablesr_512"])  # noqa: B023
      first, finite = clock(call), bool(jnp.isfinite(call()).all())
      s = run.seconds(call, 10)
      run.row("degradation", batch=batch, ms=1e3 * s, images_a_s=batch / s, first_call_s=first, finite=finite)


def trace(run: Run) -> None:
  """Five steps' slowest operations. Look for transposes, norms that are not fused, and a device that waits."""
  params = _weights(run, "unet", "time_aware_encoder")
  denoiser, args = _network(run, params, int(run.cases[0]))
  call = lambda: denoiser.predict(*args)
  first = clock(call)
  clock(call)
  found, wall = slowest(call, 5, run.output)
  if found is None:
    return run.row("no trace was written")
  busy = sum(operation.ms for operation in found)
  run.row("trace", batch=int(run.cases[0]), wall_ms=wall, busy_ms=busy, operations=sum(o.calls for o in found),
          first_call_s=first)  # fmt: skip
  for operation in found[:10]:
    run.row("operation", share=operation.ms / busy, **dataclasses.asdict(operation))


def parity(run: Run) -> None:
  """The tests against published answers, by the precision of float32 products: "highest" should pass, "default" is
  TF32 on a GPU, and its failures near 1e-3 say what `--precision float32` is there."""
  missing = [name for name in ("pytest", "beartype", "jaxtyping") if importlib.util.find_spec(name) is None]
  if missing:
    return run.row("left out", why=f"{', '.join(missing)}: not installed")
  files = ["tests/parity/test_small_models.py", "tests/parity/test_diffusion.py"]
  if run.tiny:
    files = [f"{files[1]}::test_schedule"]
  for precision in run.affordable():
    with run.trying("parity", products=precision), tempfile.TemporaryDirectory() as folder:
      options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder}/pytest"]
      done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files], cwd=ROOT, capture_output=True, text=True,
        timeout=max(1.0, run.left() - 3), env=os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": precision},
      )  # fmt: skip
      print(done.stdout, done.stderr, file=sys.stderr)
      over = [f"{a} > {b}" for a, b in re.findall(r"^E\s+assert ([\d.e+-]+) <= ([\d.e+-]+)", done.stdout, re.M)]
      failing = re.findall(r"^(?:FAILED|ERROR) (?:tests/parity/)?(\S+)", done.stdout, re.M)
      summary = (done.stdout.strip().splitlines() or [""])[-1].strip("= ")
      run.row("parity", products=precision, status=done.returncode, summary=summary, failing=failing, over_bounds=over)


def _weights(run: Run, *parts: str) -> dict[str, Any]:
  began = time.perf_counter()
  params = run.weights(run.config, *parts)
  run.row("weights made", s=time.perf_counter() - began, millions=millions(params))
  return params


def _network(run: Run, params: dict[str, Any], batch: int) -> tuple[Denoiser, tuple]:
  """A denoiser, and arguments for its `predict` and `lower`."""
  denoiser = Denoiser(run.config, params, run.compute(), run.mesh, batch)
  conditions = denoiser.condition(params[NULL_PROMPT][None], 1.0)
  shape = (batch, run.tile, run.tile, run.config.unet.latent_channels)
  x, lr = (jax.device_put(jax.random.normal(jax.random.key(k), shape), replicated(run.mesh)) for k in (0, 1))
  return denoiser, (x, lr, 333, conditions)


def _rates(run: Run, tflop_a_tile: float, batch: int | str, seconds: float) -> dict[str, float]:
  """TFLOP/s, and their share of the measured peak; of a tiny network neither says anything."""
  if run.tiny:
    return {}
  rate = tflop_a_tile * int(batch) / seconds
  return {"tflops": rate} | ({"share_of_peak": rate / run.peak} if run.peak else {})


def _torch(run: Run) -> Any:
  """PyTorch if it sees the device; else None, and a line that says so."""
  if importlib.util.find_spec("torch") is None:
    return run.row("left out", why="PyTorch is not installed")
  import torch

  return torch if torch.cuda.is_available() else run.row("left out", why="PyTorch sees no device")


def _torch_seconds(torch: Any, call: Any, repeats: int) -> tuple[float, float]:
  """Of a call that is waited for, the median; and of calls of which only the last is, the mean."""

  def timed(count: int) -> float:
    began = time.perf_counter()
    for _ in range(count):
      call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count

  timed(3)
  return float(np.median([timed(1) for _ in range(repeats)])), timed(repeats)


SECTIONS = {
  function.__name__: function
  for function in (device, peak, step, diffusers, autoencoder, end_to_end, guidance, training, embedded, degradation,
                   trace, parity)
}  # fmt: skip


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("section", choices=SECTIONS)
  parser.add_argument("--cases", nargs="+", default=[])
  parser.add_argument("--tiny", action="store_true")
  parser.add_argument("--compile", action="store_true", help="only fill the compile cache")
  parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which this process is ended")
  parser.add_argument("--peak", type=float, help="measured TFLOP/s")
  parser.add_argument("--output", type=pathlib.Path)
  parser.add_argument("--compile-cache", default="auto")
  args = parser.parse_args()
  enable_cache(args.compile_cache)
  run = Run(args)
  with run.trying("the section"):
    SECTIONS[args.section](run)


if __name__ == "__main__":
  main()
