"""Scaled dot-product attention whose memory is bounded on every device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from stablesr_jax.config import ComputeConfig

# Scores held at once by the chunked path, in elements: 8 MiB of float32, the fastest of 1 to 64 MiB on a CPU.
_CHUNK_SCORES = 1 << 21
# From here on normalising the softmax after its product with the values saves time; with fewer it only costs accuracy.
_MANY_KEYS = 1024


def attention(
  q: Float[Array, "b n h d"],
  k: Float[Array, "#b m h d"],
  v: Float[Array, "#b m h d"],
  compute: ComputeConfig,
  *,
  causal: bool = False,
) -> Float[Array, "b n h d"]:
  """softmax(q k^T / sqrt(D)) v for each head.

  Args:
    q: The queries of H heads.
    k: The keys. A batch of 1 serves every query (a prompt shared by all tiles).
    v: The values, as many as keys.
    compute: The settings that choose the implementation.
    causal: Whether a query attends to the keys up to its own position only.

  Returns:
    The answer to each query, in q's dtype; the softmax is float32.
  """
  if k.shape[0] != q.shape[0]:
    k, v = (jnp.broadcast_to(a, (q.shape[0], *a.shape[1:])) for a in (k, v))
  implementation = compute.attention
  if implementation == "auto":
    implementation = _chosen(q, k, compute)
  if implementation == "chunked" and not causal:
    return _chunked(q, k, v)
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation="cudnn" if implementation == "cudnn" else "xla"
  )


def _chosen(q: jax.Array, k: jax.Array, compute: ComputeConfig) -> str:
  """Flash attention needs half precision and heads of at most 128 channels, a multiple of 8.

  Its gradient needs even numbers of tokens, too, which the 77 of a prompt are not: scores of so few keys fit in memory.
  """
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  if compute.platform != "gpu" or not half or q.shape[-1] > 128 or q.shape[-1] % 8:
    return "chunked"
  if q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0:
    return "cudnn"
  return "xla" if k.shape[1] < _MANY_KEYS else "chunked"


def _chunked(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  """Exact attention for a few queries at a time, one head after the other."""
  b, n, h, d = q.shape
  m = k.shape[1]
  q, k, v = (a.transpose(0, 2, 1, 3).reshape(b * h, a.shape[1], d) for a in (q, k, v))
  scale = d**-0.5

  def head(qkv):
    q, k, v = qkv

    @jax.checkpoint  # training keeps no scores either
    def queries(q):
      scores = jnp.einsum("nd,md->nm", q, k, preferred_element_type=jnp.float32)
      if m < _MANY_KEYS:
        return jnp.einsum("nm,md->nd", jax.nn.softmax(scores * scale).astype(v.dtype), v)
      largest = jax.lax.stop_gradient(scores.max(axis=1, keepdims=True))
      # The softmax is normalised after the product, as its result is smaller than the scores.
      weights = jnp.exp((scores - largest) * scale)
      out = jnp.einsum("nm,md->nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
      return (out / weights.sum(axis=1, keepdims=True)).astype(v.dtype)

    chunks = -(-n // max(1, _CHUNK_SCORES // m))
    chunk = -(-n // chunks)
    # The last chunk may have queries of zeros, whose answers are cut off.
    padded = jnp.pad(q, ((0, chunks * chunk - n), (0, 0)))
    return jax.lax.map(queries, padded.reshape(chunks, chunk, d)).reshape(-1, d)[:n]

  out = jax.lax.map(head, (q, k, v))
  return out.reshape(b, h, n, d).transpose(0, 2, 1, 3)
