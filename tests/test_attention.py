"""Attention: every way against the plain one, who goes which way, and what becomes of it on several devices."""

import dataclasses
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from benchmarks import attention as benchmark
from stablesr_jax import StableSR, parallel
from stablesr_jax.config import ComputeConfig
from stablesr_jax.models.attention import attention, implementation
from tests import forced_devices

CPU = ComputeConfig(platform="cpu")
HOPPER = ComputeConfig(dtype="bfloat16", platform="gpu", flash_channels=256)
TPU = ComputeConfig(dtype="bfloat16", platform="tpu", flash_channels=512)


def random(queries: int, keys: int, *, batch: int = 2, heads: int = 3, channels: int = 8, dtype="float32"):
  shapes = [(batch, tokens, heads, channels) for tokens in (queries, keys, keys)]
  return [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]


def plain(q, k, v, keys=None):
  """The softmax as it is written, in float64."""
  q, k, v = (np.float64(a).swapaxes(1, 2) for a in (q, k, v))
  weights = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1]))
  if keys is not None:
    weights = weights * np.asarray(keys)[:, None, None]
  return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries, keys", [(37, 5), (1031, 2100)])
@pytest.mark.parametrize(
  "compute",
  [CPU, ComputeConfig(), ComputeConfig(attention="xla"), HOPPER, TPU, dataclasses.replace(CPU, devices=2)],
  ids=["cpu", "unknown", "xla", "gpu", "tpu", "two"],
)
def test_every_way_gives_the_softmax_and_its_gradient(compute, queries, keys, masked):
  """In float32, for which there is no flash attention."""
  q, k, v = random(queries, keys, heads=2)
  mask = jax.random.bernoulli(jax.random.key(3), 0.6, (2, keys)).at[:, 0].set(True) if masked else None
  answer = lambda *qkv: attention(*qkv, compute, keys=mask)
  np.testing.assert_allclose(answer(q, k, v), plain(q, k, v, mask), atol=2e-5)
  # Along one direction in all three, by the difference quotient of the plain one.
  direction = [np.cos(5 * np.float64(a)) for a in (q, k, v)]
  weigh = np.cos(np.arange(q.size)).reshape(q.shape)
  tangent = tuple(jnp.float32(a) for a in direction)
  slope = jax.jvp(lambda *qkv: jnp.sum(answer(*qkv) * weigh), (q, k, v), tangent)[1]
  at = lambda t: np.sum(
    plain(*(np.float64(a) + t * d for a, d in zip((q, k, v), direction, strict=True)), mask) * weigh
  )
  np.testing.assert_allclose(slope, (at(1e-4) - at(-1e-4)) / 2e-4, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("masked", [False, True])
def test_a_tpu_gives_the_softmax_and_its_gradient(masked):
  """Its kernel, interpreted."""
  q, k, v = random(256, 128, batch=1, heads=2, channels=64, dtype="bfloat16")
  mask = jnp.arange(128)[None] % 3 > 0 if masked else None
  assert implementation(q, k, TPU, masked=masked) == "pallas"
  total = lambda compute: lambda *qkv: jnp.sum(attention(*qkv, compute, keys=mask).astype(jnp.float32) ** 2)
  with pltpu.force_tpu_interpret_mode():
    answer = jax.jit(lambda *qkv: attention(*qkv, TPU, keys=mask))(q, k, v)
    gradients = jax.jit(jax.grad(total(TPU), (0, 1, 2)))(q, k, v)
  np.testing.assert_allclose(answer.astype(np.float32), plain(q, k, v, mask), atol=0.02)
  for gradient, wanted in zip(gradients, jax.grad(total(CPU), (0, 1, 2))(q, k, v), strict=True):
    np.testing.assert_allclose(gradient.astype(np.float32), wanted.astype(np.float32), atol=0.03)


def test_a_picture_without_any_key_has_a_finite_answer():
  q, k, v = random(6, 5)
  for compute in (CPU, ComputeConfig(), ComputeConfig(attention="xla")):
    answer = attention(q, k, v, compute, keys=jnp.zeros((2, 5), bool).at[0, 0].set(True))
    np.testing.assert_allclose(answer[1], np.broadcast_to(v[1].mean(0), (6, 3, 8)), atol=1e-6)


def test_one_prompt_serves_a_batch():
  q, k, v = random(10, 6, batch=3)
  repeated = (jnp.repeat(a[:1], 3, axis=0) for a in (k, v))
  np.testing.assert_array_equal(attention(q, k[:1], v[:1], CPU), attention(q, *repeated, CPU))


def test_causal_attention_does_not_look_ahead():
  q, k, v = random(6, 6)
  later = v.at[:, 4:].set(100.0)
  a, b = (attention(q, k, x, CPU, causal=True) for x in (v, later))
  np.testing.assert_array_equal(a[:, :4], b[:, :4])
  assert not np.allclose(a[:, 4:], b[:, 4:])


@pytest.mark.parametrize(
  "compute, channels, queries, keys, expected",
  [
    (CPU, 64, 4096, 4096, "chunked"),
    (ComputeConfig(), 64, 4096, 4096, "chunked"),
    (HOPPER, 64, 4096, 4096, "cudnn"),
    (HOPPER, 256, 64, 64, "cudnn"),
    (HOPPER, 512, 64, 64, "chunked"),  # the autoencoder's
    (HOPPER, 36, 64, 64, "chunked"),
    (HOPPER, 64, 64, 77, "chunked"),  # cuDNN has no gradient for an odd number
    (dataclasses.replace(HOPPER, flash_channels=0), 64, 64, 64, "chunked"),
    (dataclasses.replace(HOPPER, dtype="float32"), 64, 64, 64, "chunked"),
    (dataclasses.replace(HOPPER, attention="chunked"), 64, 64, 64, "chunked"),
    (dataclasses.replace(HOPPER, attention="xla"), 64, 64, 64, "xla"),
    (TPU, 64, 4096, 4096, "pallas"),
    (TPU, 512, 16384, 16384, "pallas"),
    (TPU, 64, 256, 256, "pallas"),
    (TPU, 64, 4096, 77, "chunked"),
    (TPU, 64, 81 * 81, 81 * 81, "chunked"),
    (TPU, 192, 256, 256, "chunked"),
    (dataclasses.replace(TPU, dtype="float32"), 64, 256, 256, "chunked"),
  ],
)
def test_what_computes(compute, channels, queries, keys, expected):
  q, k = (jax.ShapeDtypeStruct((2, n, 3, channels), compute.dtype) for n in (queries, keys))
  assert implementation(q, k, compute) == expected
  # cuDNN takes no mask of keys here; all others do.
  assert implementation(q, k, compute, masked=True) == ("chunked" if expected == "cudnn" else expected)
  assert implementation(q, k, compute, causal=True) == "xla"


def loops(compute: ComputeConfig, q: jax.ShapeDtypeStruct) -> list[int]:
  """The lengths of the loops in attention's program."""
  program = str(jax.make_jaxpr(lambda q: attention(q, q, q, compute))(q))
  return [int(length) for length in re.findall(r"length=(\d+)", program)]


def test_loops_do_not_grow_with_the_batch():
  """A CPU alone goes head by head; for all others a chunk is of every tile and head."""
  q = lambda batch, tokens: jax.ShapeDtypeStruct((batch, tokens, 5, 64), jnp.float32)
  for platform in ("gpu", "tpu", None):
    assert loops(ComputeConfig(platform=platform), q(8, 4096)) == [11]
    assert loops(ComputeConfig(platform=platform, devices=4), q(32, 4096)) == [11]
    assert loops(ComputeConfig(platform=platform), q(1, 4096)) == [2]
    assert loops(ComputeConfig(platform=platform), q(8, 256)) == []
  assert sorted(loops(CPU, q(1, 4096))) == [5, 8]
  assert loops(dataclasses.replace(CPU, devices=4), q(32, 4096)) == [11]
  # A number of queries that no chunk divides, as a prime one: the last chunk is filled up.
  assert loops(ComputeConfig(), q(1, 4099)) == [2]


@pytest.mark.parametrize("channels, fits", [(64, True), (256, True), (512, False)])
def test_a_gpu_runs_cudnn(monkeypatch, channels, fits):
  """Lowered for CUDA on a CPU, with the gradient; what JAX asks of the machine is answered for it."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: capability <= "9.0")
  monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda _: False)
  q = jax.ShapeDtypeStruct((2, 64, 3, channels), jnp.bfloat16)
  total = lambda q, k, v: attention(q, k, v, HOPPER).astype(jnp.float32).sum()
  text = jax.jit(jax.value_and_grad(total, (0, 1, 2))).trace(q, q, q).lower(lowering_platforms=("cuda",)).as_text()
  assert ("__cudnn$fmhaSoftmax" in text) == ("__cudnn$fmhaSoftmaxBackward" in text) == fits


@pytest.mark.parametrize(
  "devices, batch, tokens, each",
  [(1, 3, 256, "3x3x256"), (4, 8, 256, "2x3x256"), (4, 1, 1024, "1x3x256"), (4, 1, 256, "1x3x256")],
)
def test_a_tpu_runs_its_kernel(devices, batch, tokens, each):
  """Lowered for a TPU on a CPU, with the gradient; on several devices each has its part of the batch, or of queries."""
  compute = dataclasses.replace(TPU, devices=devices)
  mesh = jax.sharding.AbstractMesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.P("data") if batch % devices == 0 else jax.P()
  sharding = jax.NamedSharding(mesh, spec) if devices > 1 else None
  q = jax.ShapeDtypeStruct((batch, tokens, 3, 64), jnp.bfloat16, sharding=sharding)
  keys = jax.ShapeDtypeStruct((batch, tokens), jnp.bool_, sharding=sharding)
  total = lambda q, keys: attention(q, q, q, compute, keys=keys).astype(jnp.float32).sum()
  text = jax.jit(jax.grad(total)).trace(q, keys).lower(lowering_platforms=("tpu",)).as_text()
  assert text.count("@tpu_custom_call") == 3  # forwards, and backwards to queries and to keys
  called = next(line for line in text.splitlines() if "@tpu_custom_call" in line)
  assert f"-> tensor<{each}x64xbf16>" in called or f"-> (tensor<{each}x64xbf16>" in called


PROGRAM = """
import jax, jax.numpy as jnp
from stablesr_jax.config import ComputeConfig
from stablesr_jax.models.attention import attention
from stablesr_jax.parallel import batched, data_mesh, for_devices

mesh = data_mesh()
compute = for_devices(ComputeConfig(), mesh)
assert (compute.platform, compute.devices, compute.flash_channels) == ("cpu", 4, 0)
q, k, v = jax.random.normal(jax.random.key(0), (3, 8, 1200, 2, 8))
keys = jnp.arange(1200)[None] < jnp.arange(8)[:, None] * 100 + 50
for loss in (False, True):
  answer = lambda q, k, v, keys, compute=compute: attention(q, k, v, compute, keys=keys)
  run = lambda *args, **kwargs: jax.grad(lambda q: jnp.sum(answer(q, *args[1:], **kwargs) ** 2))(args[0])
  function = run if loss else answer
  divided = jax.jit(function, in_shardings=batched(mesh), out_shardings=batched(mesh))
  text = divided.lower(q, k, v, keys).compile().as_text()
  for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"):
    assert collective not in text, collective
  assert "[2,2,1200,1200]" in text and "[8,2,1200" not in text  # scores of its own two pictures
  result = divided(q, k, v, keys)
  alone = jax.jit(lambda *args: function(*args, compute=ComputeConfig(platform="cpu")))(q, k, v, keys)
  assert jnp.allclose(result, alone, atol=1e-5), jnp.abs(result - alone).max()
print("same")
"""


def test_each_device_attends_in_its_own_pictures():
  assert forced_devices.run(PROGRAM, 4) == "same"


def device(platform: str, kind: str = "", capability: str = "", version: str = "PJRT C API\ncuda 13000"):
  client = SimpleNamespace(platform_version=version)
  return SimpleNamespace(platform=platform, device_kind=kind, compute_capability=capability, client=client)


@pytest.mark.parametrize(
  "devices, channels",
  [
    ([device("cpu")], 0),
    ([device("gpu", capability="7.5")], 0),
    ([device("gpu", capability="8.0")], 128),
    ([device("gpu", capability="8.9")], 128),
    ([device("gpu", capability="9.0")], 256),
    ([device("gpu", capability="12.0")], 256),
    ([device("gpu", capability="9.0"), device("gpu", capability="8.0")], 128),
    ([device("gpu", capability="gfx90a", version="rocm 60000")], 0),
    ([device("tpu", "TPU v5 lite")], 512),
    ([device("tpu", "TPU v3")], 0),
  ],
)
def test_the_mesh_says_what_its_devices_can(monkeypatch, devices, channels):
  monkeypatch.setattr(parallel, "_has_cudnn", lambda: True)
  mesh = SimpleNamespace(devices=np.array(devices, object), size=len(devices))
  for named in (ComputeConfig(), ComputeConfig(platform=devices[0].platform)):
    compute = parallel.for_devices(named, mesh)  # pyright: ignore[reportArgumentType]
    assert (compute.platform, compute.devices) == (devices[0].platform, len(devices))
    assert compute.flash_channels == channels
    assert parallel.for_devices(compute, mesh) == compute  # pyright: ignore[reportArgumentType]


def test_another_platform_is_left_as_it_is_named():
  mesh = parallel.data_mesh(jax.devices("cpu")[:1])
  assert parallel.for_devices(TPU, mesh) == TPU


def test_a_loaded_model_knows_its_devices(model_folder):
  mesh = parallel.data_mesh()
  denoiser = StableSR.load(model_folder).denoiser
  assert denoiser._unet.compute == parallel.for_devices(ComputeConfig(), mesh)


def test_without_cudnn_there_is_no_flash_attention(monkeypatch):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  monkeypatch.setattr(cudnn, "cuda_versions", None)
  mesh = SimpleNamespace(devices=np.array([device("gpu", capability="9.0")], object), size=1)
  assert parallel.for_devices(ComputeConfig(), mesh).flash_channels == 0  # pyright: ignore[reportArgumentType]


def test_the_benchmark_times_every_way(monkeypatch, capsys):
  monkeypatch.setattr(benchmark, "SIZES", ((2, 16, 4),))
  monkeypatch.setattr(sys, "argv", ["attention.py", "--repeats", "1"])
  benchmark.main()
  lines = capsys.readouterr().out.splitlines()[1:]
  assert [line.split(")")[1].split(" (")[0].split(":")[0].strip() for line in lines] == ["auto", "chunked", "xla"]
  assert all(" ms median" in line for line in lines)
