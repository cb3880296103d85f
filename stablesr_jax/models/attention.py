"""Scaled dot-product attention whose memory is bounded on every device.

The batch stays an axis of every product, so that a batch that is divided among devices stays divided: nothing here
loops over pictures or heads, except a single CPU.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from stablesr_jax.config import ComputeConfig
from stablesr_jax.parallel import on_each

# Scores that a device holds at once, in elements: 256 MiB of float32, beside networks of several GiB.
_SCORES = 1 << 26
# On a CPU of one head: 8 MiB of float32, the fastest of 1 to 64 MiB.
_CPU_SCORES = 1 << 21
# From here on normalising the softmax after its product with the values saves time; with fewer it only costs accuracy.
_MANY_KEYS = 1024
# The score of a key that is not attended to. Finite: a picture without any such key has an answer, too.
_MASKED = -1e30
# Tokens that a TPU's kernel takes at once, the first of them that divides their number; of 128 lanes each.
_TPU_BLOCKS = (512, 256, 128)


def attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "#b m h d"],
  v: Float[Array, "#b m h d"],
  compute: ComputeConfig,
  *,
  causal: bool = False,
  keys: Bool[Array, "b m"] | None = None,
) -> Float[Array, "b n h d"]:
  """softmax(q k^T / sqrt(D)) v for each head.

  Args:
    q: The queries of H heads.
    k: The keys. A batch of 1 serves every query (a prompt shared by all tiles).
    v: The values, as many as keys.
    compute: The settings that choose the implementation, and what they know of the devices.
    causal: Whether a query attends to the keys up to its own position only.
    keys: Which keys are attended to; None: all. Where none is, the answer is the values' mean.

  Returns:
    The answer to each query, in q's dtype; the softmax is float32.
  """
  if k.shape[0] != q.shape[0]:
    k, v = (jnp.broadcast_to(a, (q.shape[0], *a.shape[1:])) for a in (k, v))
  how = implementation(q, k, compute, causal=causal, masked=keys is not None)
  if how == "xla":
    return jax.nn.dot_product_attention(q, k, v, mask=None if keys is None else keys[:, None, None], is_causal=causal)
  if how == "cudnn":
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
  q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
  if how == "pallas":
    answer = _divided(_pallas, compute.devices, q, k, v, keys)
  elif compute.platform == "cpu" and compute.devices == 1:
    answer = _head_by_head(q, k, v, keys)
  else:
    divided = compute.devices if len(q) % compute.devices == 0 else 1
    answer = _chunked(q, k, v, None if keys is None else keys[:, None, None], divided * _SCORES)
  return answer.swapaxes(1, 2)


def implementation(
  q: jax.Array | jax.ShapeDtypeStruct,
  k: jax.Array | jax.ShapeDtypeStruct,
  compute: ComputeConfig,
  *,
  causal: bool = False,
  masked: bool = False,
) -> str:
  """How `attention` computes: "cudnn" or "pallas" (flash attention of a GPU, of a TPU), "chunked" or "xla".

  Flash attention takes half precision and heads of up to `compute.flash_channels` channels. The gradient of cuDNN's
  needs even numbers of tokens, too, which the 77 of a prompt are not; a TPU's takes blocks of 128.
  """
  if causal or compute.attention == "xla":
    return "xla"
  n, m, channels = q.shape[1], k.shape[1], q.shape[-1]
  if compute.attention == "auto" and q.dtype in (jnp.bfloat16, jnp.float16) and channels <= compute.flash_channels:
    if compute.platform == "gpu" and not masked and channels % 8 == 0 and n % 2 == 0 and m % 2 == 0:
      return "cudnn"
    smallest = _TPU_BLOCKS[-1]
    if compute.platform == "tpu" and n % smallest == 0 and m % smallest == 0:
      if channels <= smallest or channels % smallest == 0:
        return "pallas"
  return "chunked"


def _chunked(
  q: Float[Array, "*b n d"],
  k: Float[Array, "*b m d"],
  v: Float[Array, "*b m d"],
  keys: Bool[Array, "*#b 1 m"] | None,
  limit: int,
) -> Float[Array, "*b n d"]:
  """Exact attention for a few queries of all heads at a time: as many as have up to `limit` scores together."""
  *batch, n, d = q.shape
  m, scale = k.shape[-2], d**-0.5

  @jax.checkpoint  # training keeps no scores either
  def queries(q):
    scores = jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=jnp.float32)
    if keys is not None:
      scores = jnp.where(keys, scores, _MASKED)
    if m < _MANY_KEYS:
      return jnp.einsum("...nm,...md->...nd", jax.nn.softmax(scores * scale).astype(v.dtype), v)
    # The softmax is normalised after the product, as its result is smaller than the scores.
    largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp((scores - largest) * scale)
    answer = jnp.einsum("...nm,...md->...nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (answer / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

  rows = max(1, limit * n // (q.size // d * m))  # of each head
  chunks = -(-n // rows)
  if chunks == 1:
    return queries(q)
  chunk = -(-n // chunks)
  # The last chunk may have queries of zeros, whose answers are cut off.
  padded = jnp.pad(q, (*[(0, 0)] * len(batch), (0, chunks * chunk - n), (0, 0)))
  parts = jnp.moveaxis(padded.reshape(*batch, chunks, chunk, d), -3, 0)
  return jnp.moveaxis(jax.lax.map(queries, parts), 0, -3).reshape(*batch, chunks * chunk, d)[..., :n, :]


def _head_by_head(
  q: Float[Array, "b h n d"],
  k: Float[Array, "b h m d"],
  v: Float[Array, "b h m d"],
  keys: Bool[Array, "b m"] | None,
) -> Float[Array, "b h n d"]:
  """One head after the other: a CPU's products of few queries of many heads take a quarter longer."""
  heads = [a.reshape(-1, *a.shape[2:]) for a in (q, k, v)]
  keys = None if keys is None else jnp.repeat(keys[:, None], q.shape[1], axis=0)
  head = lambda head: _chunked(*head, limit=_CPU_SCORES)
  return jax.lax.map(head, (*heads, keys)).reshape(q.shape)


def _divided(
  function: Callable[..., jax.Array],
  devices: int,
  q: Float[Array, "b h n d"],
  k: Float[Array, "b h m d"],
  v: Float[Array, "b h m d"],
  keys: Bool[Array, "b m"] | None,
) -> Float[Array, "b h n d"]:
  """Each device has pictures of its own, or queries of its own where the pictures are too few for all."""
  if devices == 1:
    return function(q, k, v, keys)
  queries = others = jax.P()
  if q.shape[0] % devices == 0:
    queries = others = jax.P("data")
  elif q.shape[2] % (devices * _TPU_BLOCKS[-1]) == 0:
    queries = jax.P(None, None, "data")
  return on_each(function, devices, (queries, others, others, others), queries)(q, k, v, keys)


def _pallas(
  q: Float[Array, "b h n d"],
  k: Float[Array, "b h m d"],
  v: Float[Array, "b h m d"],
  keys: Bool[Array, "b m"] | None,
) -> Float[Array, "b h n d"]:
  from jax.experimental.pallas.ops.tpu import flash_attention as tpu  # Late: it takes long to import.

  (b, _, n, d), m = q.shape, k.shape[2]
  rows, columns = (next(block for block in _TPU_BLOCKS if tokens % block == 0) for tokens in (n, m))
  blocks = tpu.BlockSizes(
    block_b=1,
    block_q=rows,
    block_k_major=columns,
    block_k=columns,
    block_q_major_dkv=rows,
    block_k_major_dkv=columns,
    block_k_dkv=columns,
    block_q_dkv=rows,
    block_k_major_dq=columns,
    block_k_dq=columns,
    block_q_dq=rows,
  )
  # Tokens attend to those of the same number.
  segments = None if keys is None else tpu.SegmentIds(jnp.ones((b, n), jnp.int32), keys.astype(jnp.int32))
  return tpu.flash_attention(q, k, v, segment_ids=segments, sm_scale=d**-0.5, block_sizes=blocks)
