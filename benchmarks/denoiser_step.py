"""Times our whole denoising step (time-aware encoder + SFT + UNet) against diffusers' PyTorch UNet, in one run.

    python benchmarks/denoiser_step.py [--json FILE]

On CPU, float32: one 64x64 latent, random weights of the full size. Diffusers' UNet has neither encoder nor SFT, so a
ratio of 1 means that StableSR's additions come for free. On a GPU, if there is one: bfloat16, several tile batches,
TFLOP/s, and pictures per second.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from stablesr_jax import config as configs
from stablesr_jax.config import ComputeConfig
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.models import winograd
from stablesr_jax.models.components import abstract_params
from stablesr_jax.parallel import data_mesh, for_devices, platform

# Dense bfloat16 peaks in TFLOP/s, by a part of the device's name.
PEAKS = {"H100": 989.4, "H200": 989.4, "A100": 312.0, "L4": 121.0, "RTX 4090": 165.2}


def random_params(config: configs.ModelConfig, part: str, dtype) -> dict:
  """Weights of a plausible size, made on the host without compiling anything."""
  rng = np.random.default_rng(0)

  def fill(leaf):
    scale = np.float32(0.5 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))) if len(leaf.shape) > 1 else np.float32(0.02)
    return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * scale, dtype)

  return jax.tree.map(fill, abstract_params(config, part))


class Step:
  """Our step for a batch of 64x64 tiles, as the pipeline runs it. The params are donated."""

  def __init__(self, config: configs.ModelConfig, params: dict, compute: ComputeConfig, batch: int):
    mesh = data_mesh(jax.devices()[:1])
    compute = for_devices(compute, mesh)
    params = {part: winograd.prepare(tree, compute, donate=True) for part, tree in params.items()}
    self._denoiser = Denoiser(config, params, compute, mesh, batch)
    prompt = jnp.zeros((1, 77, config.unet.context_dim), compute.jax_dtype)
    conditions = jax.block_until_ready(self._denoiser.condition(prompt, 1.0))
    keys = jax.random.split(jax.random.key(0))
    x, lr = (jax.random.normal(key, (batch, 64, 64, 4)) for key in keys)
    self._args = (x, lr, 333, conditions)

  def __call__(self):
    return jax.block_until_ready(self._denoiser.predict(*self._args))

  def flops(self) -> float:
    """Of one call, as XLA counts them."""
    return float(self._denoiser.lower(*self._args).compile().cost_analysis()["flops"])


def diffusers_step() -> Callable[[], object]:
  """Diffusers' SD 2.1 UNet on one 64x64 latent, PyTorch CPU, with all cores."""
  import torch
  from diffusers import UNet2DConditionModel

  torch.set_num_threads(os.cpu_count() or 1)
  unet = UNet2DConditionModel(
    sample_size=64, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
  ).eval()  # fmt: skip
  x, context, t = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 1024), torch.tensor([500])

  def step():
    with torch.inference_mode():
      return unet(x, t, context).sample

  return step


def interleaved(a: Callable, b: Callable, repeats: int) -> tuple[list[float], list[float]]:
  """Seconds of each call of two functions in turn, so that a busy machine slows both."""
  times: tuple[list[float], list[float]] = ([], [])
  for _ in range(repeats):
    for function, record in zip((a, b), times, strict=True):
      start = time.perf_counter()
      function()
      record.append(time.perf_counter() - start)
  return times


def on_cpu(repeats: int) -> dict:
  config = configs.stablesr_512()
  params = {part: random_params(config, part, jnp.float32) for part in ("unet", "time_aware_encoder")}
  ours, theirs = Step(config, params, ComputeConfig(), 1), diffusers_step()
  start = time.perf_counter()
  ours()
  first = time.perf_counter() - start
  theirs()
  our_times, their_times = interleaved(ours, theirs, repeats)
  result = {
    "device": "cpu",
    "cores": os.cpu_count(),
    "ours_s": min(our_times),
    "diffusers_unet_s": min(their_times),
    "ours_median_s": statistics.median(our_times),
    "diffusers_unet_median_s": statistics.median(their_times),
    "ratio": statistics.median(a / b for a, b in zip(our_times, their_times, strict=True)),
    "first_call_s": first,
  }
  print(f"ours (encoder + SFT + UNet)   {result['ours_s']:.2f} s best, {result['ours_median_s']:.2f} s median")
  print(
    f"diffusers UNet, PyTorch       {result['diffusers_unet_s']:.2f} s best, "
    f"{result['diffusers_unet_median_s']:.2f} s median"
  )
  print(f"time ratio                    {result['ratio']:.3f} (median of pairs); first call, compiling: {first:.1f} s")
  return result


def on_gpu(repeats: int) -> dict:
  device = jax.devices()[0]
  peak = next((value for name, value in PEAKS.items() if name in device.device_kind), None)
  config = configs.stablesr_512()
  params = {part: random_params(config, part, jnp.bfloat16) for part in ("unet", "time_aware_encoder")}
  rows = []
  for batch in (1, 4, 8, 16):
    step = Step(config, params, ComputeConfig(dtype="bfloat16"), batch)
    flops = step.flops()
    step()
    times = []
    for _ in range(repeats):
      start = time.perf_counter()
      step()
      times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    row = {"tile_batch": batch, "seconds": seconds, "tflops": flops / seconds / 1e12}
    row["fraction_of_peak"] = row["tflops"] / peak if peak else None
    row |= {f"images_per_s_{steps}_steps": batch / (seconds * steps) for steps in (200, 20, 4)}
    rows.append(row)
    share = f"{row['fraction_of_peak']:.1%} of peak" if peak else "peak unknown"
    rates = ", ".join(f"{row[f'images_per_s_{n}_steps']:.2f}" for n in (200, 20, 4))
    print(
      f"batch {batch:2d}: {1e3 * seconds:.1f} ms, {row['tflops']:.0f} TFLOP/s, {share}; images/s at 200/20/4: {rates}"
    )
  return {"device": device.device_kind, "batches": rows}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args()
  result = on_gpu(4 * args.repeats) if platform() == "gpu" else on_cpu(args.repeats)
  if args.json:
    with open(args.json, "w") as f:
      json.dump(result, f, indent=2)


if __name__ == "__main__":
  main()
