"""Pictures over eight devices, and what other devices than a CPU compute."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from stablesr_jax.config import ComputeConfig
from stablesr_jax.inference.denoiser import Denoiser
from stablesr_jax.models.components import abstract_params
from stablesr_jax.parallel import data_mesh
from tests import forced_devices
from tests.micro import MODEL

PROGRAM = """
import dataclasses, re
from collections import Counter
import jax, jax.numpy as jnp, numpy as np
from tests import micro
from tests.micro import photograph, restorer
from stablesr_jax.config import ComputeConfig
from stablesr_jax.inference.tiled_autoencoder import TiledAutoencoder
from stablesr_jax.parallel import data_mesh, for_devices

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
floats = [m.upscale(image / np.float32(255)) for m in (one, eight)]
np.testing.assert_allclose(*floats, atol=1e-5)

# The autoencoder, with attention: eight pictures are divided among the devices, of one its rows are.
config = dataclasses.replace(micro.AUTOENCODER, attention=True)
params = micro.random_params(dataclasses.replace(micro.MODEL, autoencoder=config), "autoencoder")
meshes = data_mesh(jax.devices()[:1]), data_mesh()
one, eight = (TiledAutoencoder(config, params, for_devices(ComputeConfig(), mesh), mesh, 64) for mesh in meshes)
collective = re.compile(r" (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)(?:-start)?[(]")
assert eight.whole((128, 192)) and not one.whole((128, 192)) and eight.most((64, 64)) == 8
one.tile = 256  # whole here, too
for count in (1, 8):
  pictures = jnp.asarray(np.stack([photograph(128, 96) / 127.5 - 1] * count), jnp.float32)
  sides, work = np.array([[30, 22]] * count, np.int32), []
  for autoencoder in (one, eight):
    encoded = autoencoder.encode(pictures, sides)
    latents = encoded.moments[..., :4]
    decoded = autoencoder.decode(latents, sides, encoded.features, 1.0)
    programs = [
      autoencoder._encode.lower(autoencoder._params, autoencoder._divided(pictures), sides).compile(),
      autoencoder._decode.lower(
        autoencoder._params, autoencoder._divided(latents), sides, encoded.features, jnp.float32(1)
      ).compile(),
    ]
    found = sum((Counter(collective.findall(program.as_text())) for program in programs), Counter())
    work.append((
      encoded.moments[:, :30, :22], decoded[:, :120, :88], [p.cost_analysis()["flops"] for p in programs], found,
      [decoded.addressable_shards[0].data.shape, *(f.addressable_shards[0].data.shape for f in encoded.features)],
    ))
  (*results, flops, none, _), (*divided, part, found, shapes) = work
  assert not none and bool(found) == (count == 1), found  # halos of rows and sums of statistics; pictures need neither
  assert all(mine < whole / 6 for mine, whole in zip(part, flops)), (part, flops)  # no device does the whole
  assert shapes == ([(1, 16, 96, 3), (1, 8, 48, 8)] if count == 1 else [(1, 128, 96, 3), (1, 64, 48, 8)]), shapes
  for a, b in zip(results, divided):
    np.testing.assert_allclose(a, b, atol=1e-4)
print("same")
"""


@pytest.mark.slow
def test_the_work_is_divided_among_devices_and_the_result_is_the_same():
  assert forced_devices.run(PROGRAM, 8) == "same"


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
