"""What becomes of a stage that runs out of memory, or whose values are not finite in half precision."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesr_jax import StableSR
from stablesr_jax.checkpoints.store import Manifest
from stablesr_jax.config import ComputeConfig
from stablesr_jax.errors import UserError
from stablesr_jax.inference import memory, stages
from stablesr_jax.inference.picture_sizes import PictureSizes
from stablesr_jax.parallel import data_mesh, for_devices
from tests import micro
from tests.micro import SAMPLING, photograph


def exhausted() -> Exception:
  return jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


def failing(monkeypatch, network, method: str, too_much):
  """Has a network's method run out of memory when `too_much`, which is told its arguments, says so."""
  original, calls = getattr(network, method), []

  def call(*args, **options):
    calls.append(too_much(*args))
    if calls[-1]:
      raise exhausted()
    return original(*args, **options)

  monkeypatch.setattr(network, method, call)
  return calls


@pytest.fixture
def told():
  return []


def restore(model: StableSR, images, told, sampling=SAMPLING):
  keys = [jax.random.key(number) for number in range(len(images))]
  return model.upscale_batch(images, scale=4, keys=keys, sampling=sampling, tell=told.append)


def picture(height: int = 50, width: int = 40) -> np.ndarray:
  return photograph(height, width) / np.float32(255)


def test_an_encoder_or_decoder_without_memory_goes_on_in_pieces(monkeypatch, told):
  model = micro.restorer(autoencoder_tile=512)
  expected = restore(micro.restorer(autoencoder_tile=128), [picture()], told)
  calls = failing(monkeypatch, model.autoencoder, "_encode", lambda *_: True)
  [result] = restore(model, [picture()], told)
  np.testing.assert_array_equal(result, expected[0])
  assert calls == [True] and told == ["out of memory: from here on the autoencoder takes pieces of 128 pixels"]
  restore(model, [picture()], told)  # no try with more, and nothing is told
  assert len(calls) == len(told) == 1

  model, told = micro.restorer(autoencoder_tile=512), []
  calls = failing(monkeypatch, model.autoencoder, "_decode", lambda *_: True)
  [result] = restore(model, [picture()], told)
  assert calls == [True] and len(told) == 1
  assert np.abs(result - expected[0]).mean() < 0.02  # it was encoded whole


def test_a_network_without_memory_takes_fewer_tiles(monkeypatch, told):
  model = micro.restorer(tile_batch=8)
  [expected] = restore(model, [picture()], told)
  calls = failing(monkeypatch, model.denoiser, "predict", lambda x, *_: len(x) > 2)
  [result] = restore(model, [picture()], told)
  assert calls[:3] == [True, True, False] and told == ["out of memory: from here on the network takes 2 tiles at once"]
  np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("part, method", [("autoencoder", "_encode_piece"), ("denoiser", "predict")])
def test_what_runs_out_of_memory_with_the_least_is_an_error(monkeypatch, told, part, method):
  model = micro.restorer(autoencoder_tile=128, tile_batch=4)
  calls = failing(monkeypatch, getattr(model, part), method, lambda *_: True)
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
    restore(model, [picture()], told)
  assert not told and len(calls) == (1 if part == "autoencoder" else 3)


def test_memory_that_runs_out_elsewhere_is_an_error_at_once(monkeypatch):
  def broken(*_):
    raise RuntimeError("something else")

  model = micro.restorer()
  monkeypatch.setattr(model.autoencoder, "_encode", broken)
  with pytest.raises(RuntimeError, match="something else"):
    model.upscale(photograph(16, 16))


def half() -> StableSR:
  return StableSR(
    Manifest("micro", micro.MODEL, sampling=SAMPLING),
    {part: jax.tree.map(lambda a: jnp.asarray(a, "bfloat16"), tree) for part, tree in micro.params().items()},
    compute=ComputeConfig(dtype="bfloat16"),
    tile_batch=4,
  )


def spoil(monkeypatch, network, method: str, which):
  """Has a network's method give NaN in half precision, where `which`, which is told its arguments, says so."""
  original = getattr(network, method)

  def call(*args, **options):
    result, there = original(*args, **options), which(*args)
    return jax.tree.map(lambda a: jnp.where(there, jnp.nan, a), result)

  monkeypatch.setattr(network, method, call)


@pytest.mark.parametrize(
  "part, method, stage",
  [("autoencoder", "encode", "encoding"), ("denoiser", "sample", "denoising"), ("autoencoder", "decode", "decoding")],
)
def test_what_is_not_finite_in_half_precision_is_made_again_in_float32(monkeypatch, told, part, method, stage):
  """Each picture that is not, and no other."""
  model, images = half(), [picture(16, 16), picture(16, 24), picture(16, 20)]
  expected = restore(model, images, told)
  assert not told
  calls = []

  def second(*args):  # of what is called for each picture, or of the sheet's canvases, which are 64 pixels high
    calls.append(None)
    if part == "autoencoder":
      return len(calls) == 2
    return ((np.arange(args[0].shape[0]) // 16) == 1)[:, None, None]

  spoil(monkeypatch, getattr(model, part), method, second)
  result = restore(model, images, told)
  assert told[0] == f"bfloat16 did not suffice: {stage} was done again in float32"
  spoilt = [number for number in range(3) if (result[number] != expected[number]).any()]
  assert len(spoilt) <= 1 and all(np.isfinite(each).all() for each in result)
  for a, b in zip(result, expected, strict=True):
    assert np.abs(a - b).mean() < 0.05


def test_what_is_not_finite_in_float32_either_is_an_error(monkeypatch, told):
  params = micro.params()
  params["autoencoder"]["decoder"]["conv_out"]["bias"] = np.full(3, np.nan, np.float32)
  for compute, lines in ((ComputeConfig(), 0), (ComputeConfig(dtype="bfloat16"), 1)):
    model = StableSR(Manifest("micro", micro.MODEL, sampling=SAMPLING), params, compute=compute, tile_batch=4)
    said = []
    with pytest.raises(UserError, match="^the result has values that are not finite$"):
      restore(model, [picture(16, 16)], said)
    assert len(said) == lines


def test_float32_is_not_looked_at_between_the_stages(monkeypatch, told):
  model = micro.restorer(tile_batch=4)
  monkeypatch.setattr(stages, "_finite_rows", None)
  restore(model, [picture(16, 16)], told)
  assert "exact" not in vars(model._stages)


COMPUTE = for_devices(ComputeConfig(), data_mesh(jax.devices()[:1]))


def test_the_estimate_of_the_autoencoder_is_xlas_account():
  config = dataclasses.replace(micro.AUTOENCODER, channels=32)
  model = micro.restorer()
  autoencoder = stages.TiledAutoencoder(
    config, micro.random_params(dataclasses.replace(micro.MODEL, autoencoder=config), "autoencoder"), COMPUTE,
    data_mesh(jax.devices()[:1]), 256,
  )  # fmt: skip
  shape = lambda *sides: jax.ShapeDtypeStruct(sides, np.float32)
  lowered = autoencoder._decode_piece.lower(
    autoencoder._params, shape(1, 64, 64, 4), shape(1, 256, 256, 3), jax.ShapeDtypeStruct((1, 2), np.int32), shape()
  )
  account: Any = lowered.compile().memory_analysis()
  account = account.temp_size_in_bytes
  assert 0.9 * account < memory.of_autoencoder(config, 256**2, "cpu") < 2 * account
  assert model.autoencoder.tile == 1024  # there is enough for a model as small as this


def test_the_bound_of_the_memory_chooses_the_pieces(monkeypatch):
  need = lambda side: memory.of_autoencoder(micro.AUTOENCODER, side**2, "cpu")
  free = lambda side: need(side) / memory.SHARE
  assert memory.chosen_tile(micro.AUTOENCODER, COMPUTE, free(768)) == 768
  assert memory.chosen_tile(micro.AUTOENCODER, COMPUTE, free(768) - 1) == 512
  assert memory.chosen_tile(micro.AUTOENCODER, COMPUTE, 0) == 128
  sizes = PictureSizes.of((100, 100, 3), 4, SAMPLING, 4)
  monkeypatch.setattr(stages, "free_memory", lambda mesh, most: most)
  bound = int(memory.of_picture(micro.MODEL, COMPUTE, sizes, 256))
  model = micro.restorer(max_memory=bound)
  model._stages.fit([sizes])
  assert model.autoencoder.tile == 256
  least = memory.of_picture(micro.MODEL, COMPUTE, sizes, 128)
  with pytest.raises(UserError, match=r"^max-memory \d+M: a result of 400x400 needs \d+M$"):
    micro.restorer(max_memory=int(least) - 1)._stages.fit([sizes])
