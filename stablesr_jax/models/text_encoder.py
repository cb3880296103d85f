"""OpenCLIP's text tower, whose last layers Stable Diffusion 2.1 leaves out."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from stablesr_jax.config import ComputeConfig, TextEncoderConfig
from stablesr_jax.models.attention import attention
from stablesr_jax.models.layers import Dense, LayerNorm


class TextBlock(nn.Module):
  heads: int
  compute: ComputeConfig

  @nn.compact
  def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """A token attends to those up to itself."""
    b, n, c = x.shape
    dtype = self.compute.jax_dtype
    h = LayerNorm(epsilon=1e-5, dtype=dtype, name="norm1")(x)
    qkv = Dense(3 * c, dtype=dtype, name="qkv")(h)
    q, k, v = (a.reshape(b, n, self.heads, -1) for a in jnp.split(qkv, 3, axis=-1))
    x += Dense(c, dtype=dtype, name="out")(attention(q, k, v, self.compute, causal=True).reshape(b, n, c))
    h = LayerNorm(epsilon=1e-5, dtype=dtype, name="norm2")(x)
    h = nn.gelu(Dense(4 * c, dtype=dtype, name="widen")(h), approximate=False)
    return x + Dense(c, dtype=dtype, name="narrow")(h)


class TextEncoder(nn.Module):
  """Tokens, 77 a text -> embeddings float32, the final norm included."""

  config: TextEncoderConfig
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
    c = self.config
    normal = nn.initializers.normal(0.02)
    x = nn.Embed(c.vocabulary, c.width, embedding_init=normal, name="token_embedding")(tokens)
    x += self.param("positional_embedding", normal, (c.context_length, c.width))[None]
    x = x.astype(self.compute.jax_dtype)
    for i in range(c.layers):
      x = TextBlock(c.heads, self.compute, name=f"layer_{i}")(x)
    return LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_out")(x)
