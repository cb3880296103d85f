"""The patch discriminator and adversarial losses that the autoencoder and CFW are trained with (3.2).

The network is the patch discriminator of Isola et al., "Image-to-Image Translation with Conditional Adversarial
Networks" (2017); the hinge losses and the adaptive weight are those of Esser et al., "Taming Transformers for
High-Resolution Image Synthesis" (2021).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from stablesr_jax.config import ComputeConfig, DiscriminatorConfig

Logits = Float[Array | np.ndarray, "..."]

_KERNEL_INIT = nn.initializers.normal(0.02)


class PatchDiscriminator(nn.Module):
  """Judges every patch of an image by itself: 70x70 pixels, one each 8 pixels, at the default sizes.

  The published network has BatchNorm. Here the norm is GroupNorm, whose answer for an image does not depend on the
  other images beside it: a device may hold a single image of a data-parallel batch, gradients may be accumulated
  over several passes, and the real and the restored images are judged in separate ones.
  """

  config: DiscriminatorConfig = DiscriminatorConfig()
  compute: ComputeConfig = ComputeConfig()

  @nn.compact
  def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h2 w2 1"]:
    """Images in [-1, 1] -> logits float32, high for real; h2 = h // 2**layers - 2.

    Raises:
      ValueError: A side is shorter than 3 * 2**layers, so that there is no patch to judge.
    """
    c = self.config
    shortest = c.smallest_image
    if min(image.shape[1:3]) < shortest:
      raise ValueError(
        f"an image of {image.shape[2]}x{image.shape[1]} is too small for the discriminator, "
        f"which needs {shortest}x{shortest}"
      )
    h = nn.leaky_relu(self._conv(c.width, 2, "conv_in")(image), 0.2)
    for i in range(1, c.layers + 1):
      features = c.width * min(2**i, c.max_multiplier)
      h = self._conv(features, 2 if i < c.layers else 1, f"conv_{i}")(h)
      # 32 groups, fewer where a narrow network has not the channels for them.
      h = nn.GroupNorm(math.gcd(32, features), epsilon=1e-5, dtype=self.compute.jax_dtype, name=f"norm_{i}")(h)
      h = nn.leaky_relu(h, 0.2)
    return self._conv(1, 1, "conv_out")(h).astype(jnp.float32)

  def _conv(self, features: int, stride: int, name: str) -> nn.Conv:
    return nn.Conv(
      features,
      (4, 4),
      (stride, stride),
      padding=((1, 1), (1, 1)),
      dtype=self.compute.jax_dtype,
      kernel_init=_KERNEL_INIT,
      name=name,
    )


def hinge_discriminator_loss(real_logits: Logits, fake_logits: Logits) -> Float[Array, ""]:
  """The discriminator's loss, float32: 0 where real logits are above 1 and fake ones below -1.

  Args:
    real_logits: The logits of real images, of any shape.
    fake_logits: The logits of made images, not necessarily of the same shape.
  """
  real_logits, fake_logits = (jnp.asarray(logits, jnp.float32) for logits in (real_logits, fake_logits))
  return (jnp.mean(jax.nn.relu(1 - real_logits)) + jnp.mean(jax.nn.relu(1 + fake_logits))) / 2


def hinge_generator_loss(fake_logits: Logits) -> Float[Array, ""]:
  """The adversarial loss, float32, of what made the images: minus the mean logit."""
  return -jnp.mean(jnp.asarray(fake_logits, jnp.float32))


def adaptive_weight(
  reconstruction_grad: PyTree[Float[Array | np.ndarray, "..."]],
  adversarial_grad: PyTree[Float[Array | np.ndarray, "..."]],
) -> Float[Array, ""]:
  """The weight, float32 in [0, 1e4] that makes both losses pull equally hard at the decoder's last layer.

  Args:
    reconstruction_grad: The reconstruction loss's gradient with respect to the last layer's parameters, an array or a
      tree of them.
    adversarial_grad: The adversarial loss's gradient with respect to the same.

  Returns:
    The ratio of their L2 norms, clipped; it is a constant to differentiation.
  """
  ratio = _norm(reconstruction_grad) / (_norm(adversarial_grad) + 1e-4)
  return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, 1e4))


def _norm(tree: PyTree[jax.Array | np.ndarray]) -> jax.Array:
  return jnp.sqrt(sum((jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(tree)), jnp.float32(0)))
