"""One picture's tiles over eight devices."""

import os
import subprocess
import sys

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
assert eight.denoiser.tile_batch == 8, eight.denoiser.tile_batch
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
