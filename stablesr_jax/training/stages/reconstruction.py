"""The loss of images against images, of all stages that train a decoder: L1, LPIPS, and a discriminator's verdict."""

import jax
import jax.numpy as jnp

from stablesr_jax.checkpoints.store import load_lpips
from stablesr_jax.config import ComputeConfig
from stablesr_jax.errors import UserError
from stablesr_jax.models.discriminator import (
  PatchDiscriminator,
  adaptive_weight,
  hinge_discriminator_loss,
  hinge_generator_loss,
)
from stablesr_jax.models.parameters import Params, apply
from stablesr_jax.parallel import replicated
from stablesr_jax.training.config import AutoencoderStage, CfwStage, OneStepStage
from stablesr_jax.training.logged import Means

DISCRIMINATOR, LPIPS = "discriminator", "lpips"


class ReconstructionLoss:
  """L1 + perceptual_weight * LPIPS + adversarial_weight * adaptive weight (or 1) * verdict.

  The discriminator learns in the same step, from the same images, by the same optimiser: its loss is added, and
  neither loss has a gradient in the other's parameters.

  The adaptive weight makes both losses pull equally hard at the image. VQGAN measures that at the decoder's last
  layer; at its output, the image, the same is had without going through the network twice.
  """

  def __init__(
    self, settings: AutoencoderStage | CfwStage | OneStepStage, compute: ComputeConfig, mesh: jax.sharding.Mesh
  ):
    """
    Raises:
      UserError: LPIPS is asked for and there are no weights.
    """
    self._settings = settings
    self._discriminator = PatchDiscriminator(settings.discriminator, compute)
    self.frozen: Params = {}
    if settings.perceptual_weight > 0:
      if settings.lpips is None:
        raise UserError(
          "stage.lpips: LPIPS needs weights: convert torchvision's vgg16-397923af.pth and the lpips package's vgg.pth "
          "with convert_weights.py and name the folder here, or train without (stage.perceptual-weight 0)"
        )
      self._lpips, self.frozen[LPIPS] = load_lpips(settings.lpips, compute, sharding=replicated(mesh))

  def init(self, key: jax.Array, side: int) -> Params:
    """The discriminator's parameters, if there is one; `side` of the training images in pixels."""
    if self._settings.adversarial_weight == 0:
      return {}
    return {DISCRIMINATOR: self._discriminator.init(key, jnp.zeros((1, side, side, 3)))["params"]}

  def __call__(
    self, params: Params, frozen: Params, image: jax.Array, target: jax.Array, step: jax.Array
  ) -> tuple[jax.Array, Means]:
    """
    Args:
      params: with "discriminator", if there is one.
      frozen: with "lpips", if it is used.
      image, target: (B, H, W, 3) in [-1, 1], float32.

    Returns:
      The loss () and its parts to log.
    """
    s, count = self._settings, jnp.float32(len(image))
    logged: Means = {}

    def log(name: str, value: jax.Array) -> None:
      logged[name] = (value * count, count)

    def reconstruction(image: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
      l1, distance = jnp.mean(jnp.abs(image - target)), jnp.zeros(())
      if s.perceptual_weight > 0:
        distance = jnp.mean(apply(self._lpips, frozen[LPIPS], image, target))
      return l1 + s.perceptual_weight * distance, (l1, distance)

    loss, (l1, distance) = reconstruction(image)
    log("l1", l1)
    if s.perceptual_weight > 0:
      log("lpips", distance)
    if s.adversarial_weight > 0:
      judge = lambda p, x: apply(self._discriminator, p, x)
      started = (step >= s.adversarial_start).astype(jnp.float32)
      fixed = jax.lax.stop_gradient(params[DISCRIMINATOR])
      verdict = lambda x: hinge_generator_loss(judge(fixed, x))
      constant = jax.lax.stop_gradient(image)
      weight = s.adversarial_weight
      if s.adversarial_scaling == "adaptive":
        scale = adaptive_weight(jax.grad(lambda x: reconstruction(x)[0])(constant), jax.grad(verdict)(constant))
        log("adaptive_weight", scale)
        weight *= scale
      loss += started * weight * verdict(image)
      critic = hinge_discriminator_loss(judge(params[DISCRIMINATOR], target), judge(params[DISCRIMINATOR], constant))
      loss += started * critic
      log("discriminator", critic)
    return loss, logged
