"""One picture's tiles over eight devices, and what other devices than a CPU compute."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp

from stablesr_jax.config import ComputeConfig
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.models.components import abstract_params
from stablesr_jax.parallel import data_mesh
from tests.micro import MODEL

PROGRAM = """
import jax, numpy as np
from tests.micro import photograph, restorer
from stablesr_jax.parallel import data_mesh

assert jax.device_count() == 8
image = photograph(24, 24)
one, eight = restorer(mesh=data_mesh(jax.devices()[:1]), tile_batch=1), restorer()
spread = []
predict = eight.denoiser.predict
eight.denoiser.predict = lambda *args: spread.append(predict(*args)) or spread[-1]
expected, result = one.upscale(image), eight.upscale(image)
shapes = {shard.data.shape for tiles in spread for shard in tiles.addressable_shards}
channels = one.config.unet.latent_channels
assert shapes == {(1, 16, 16, channels)}, shapes  # every device has a tile of its own
assert len({shard.device for shard in spread[0].addressable_shards}) == 8
difference = np.abs(result.astype(int) - expected)
assert difference.max() <= 1 and difference.mean() < 0.01, (difference.max(), difference.mean())
print("same")
"""


def test_tiles_are_spread_over_devices_and_the_result_is_the_same():
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
  assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_guidance_is_a_batch_twice_as_large(monkeypatch):
  """Traced as for a GPU, whose kernels of attention cannot be mapped over an axis of prompts."""
  batches = []

  def attend(q, k, v, *, implementation, **_):
    assert implementation == "cudnn" and len(k) == len(q)
    batches.append(len(q))
    return q

  monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
  config = dataclasses.replace(MODEL, unet=dataclasses.replace(MODEL.unet, head_channels=8))
  params = {part: abstract_params(config, part) for part in ("unet", "time_aware_encoder")}
  compute = ComputeConfig(dtype="bfloat16", platform="gpu", flash_channels=128)
  denoiser = Denoiser(config, params, compute, data_mesh(jax.devices()[:1]))
  tiles = jax.ShapeDtypeStruct((3, 16, 16, config.unet.latent_channels), jnp.float32)
  for prompts in (1, 2):
    embeddings = jax.ShapeDtypeStruct((prompts, 77, config.unet.context_dim), jnp.bfloat16)
    conditions = jax.eval_shape(denoiser._condition_impl, params, embeddings, jnp.float32(2))
    batches.clear()
    prediction = jax.eval_shape(denoiser._predict_impl, params, tiles, tiles, jnp.int32(0), conditions)
    assert prediction.shape == tiles.shape
    assert set(batches) == {3 * prompts}
