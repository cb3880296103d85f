"""The patch discriminator against PyTorch's layers, and the adversarial losses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stablesr_jax.checkpoints.layout import to_pytorch
from stablesr_jax.config import ComputeConfig, DiscriminatorConfig
from stablesr_jax.models.discriminator import (
  PatchDiscriminator,
  adaptive_weight,
  hinge_discriminator_loss,
  hinge_generator_loss,
)

NARROW = PatchDiscriminator(DiscriminatorConfig(width=16))
apply = jax.jit(lambda params, image: NARROW.apply({"params": params}, image))


def images(*shape: int) -> np.ndarray:
  return np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)


def abstract_params(module: PatchDiscriminator):
  return jax.eval_shape(module.init, jax.random.key(0), images(1, 24, 24))["params"]


def random_params(module: PatchDiscriminator):
  """Parameters that are zero nowhere."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), abstract_params(module))


@pytest.fixture(scope="module")
def params():
  return random_params(NARROW)


def pytorch_answer(params, image: np.ndarray) -> np.ndarray:
  """The same network out of torch.nn layers."""
  strides = {"conv_in": 2, "conv_1": 2, "conv_2": 2, "conv_3": 1, "conv_out": 1}
  layers: list[torch.nn.Module] = []
  for name, stride in strides.items():
    weight = torch.from_numpy(to_pytorch(np.asarray(params[name]["kernel"]), "kernel"))
    convolution = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 4, stride, padding=1)
    convolution.load_state_dict({"weight": weight, "bias": torch.tensor(params[name]["bias"])})
    layers.append(convolution)
    if (norm := params.get(name.replace("conv", "norm"))) is not None:
      layers.append(torch.nn.GroupNorm(32, weight.shape[0]))
      layers[-1].load_state_dict({"weight": torch.tensor(norm["scale"]), "bias": torch.tensor(norm["bias"])})
    layers.append(torch.nn.LeakyReLU(0.2))
  with torch.no_grad():
    answer = torch.nn.Sequential(*layers[:-1])(torch.from_numpy(np.moveaxis(image, -1, 1).copy()))
  return np.moveaxis(answer.numpy(), 1, -1)


def test_agrees_with_pytorchs_layers(params):
  image = images(2, 41, 56)
  ours = apply(params, image)
  assert ours.shape == (2, 41 // 8 - 2, 56 // 8 - 2, 1) and ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, pytorch_answer(params, image), rtol=1e-4, atol=1e-5)


def test_published_sizes():
  module = PatchDiscriminator()
  tree = abstract_params(module)
  assert [tree[f"conv_{i}"]["kernel"].shape[-1] for i in (1, 2, 3)] == [128, 256, 512]
  # As many as with BatchNorm, but that the convolutions before a norm have a bias.
  assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 2_765_633 + 128 + 256 + 512
  logits = jax.eval_shape(lambda tree, image: module.apply({"params": tree}, image), tree, images(1, 512, 256))
  assert logits.shape == (1, 62, 30, 1)


def test_a_patch_is_70_pixels_wide():
  # GroupNorm sees the whole image, so without it: only where the convolutions reach can a gradient be.
  module = PatchDiscriminator(DiscriminatorConfig(width=2))
  params = random_params(module)

  def skip_norms(next_method, args, kwargs, context):
    return args[0] if isinstance(context.module, nn.GroupNorm) else next_method(*args, **kwargs)

  def one_logit(image):
    with nn.intercept_methods(skip_norms):
      return module.apply({"params": params}, image)[0, 6, 6, 0]

  gradient = np.asarray(jax.jit(jax.grad(one_logit))(images(1, 128, 128)))[0]
  rows, columns = np.nonzero(np.abs(gradient).sum(-1))
  assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 70


def test_an_image_is_judged_by_itself(params):
  batch = images(3, 32, 32)
  np.testing.assert_allclose(apply(params, batch)[:1], apply(params, batch[:1]), rtol=1e-4, atol=1e-5)


def test_the_smallest_image(params):
  assert jax.eval_shape(apply, params, images(1, 24, 24)).shape == (1, 1, 1, 1)
  with pytest.raises(ValueError, match="an image of 40x23 is too small for the discriminator, which needs 24x24"):
    apply(params, images(1, 23, 40))


def test_bfloat16_gives_float32_logits(params):
  module = PatchDiscriminator(NARROW.config, ComputeConfig(dtype="bfloat16"))
  image = images(1, 32, 32)
  logits = jax.jit(module.apply)({"params": params}, image)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, apply(params, image), atol=0.1)


def test_hinge_losses():
  real, fake = np.array([2.0, 0.5, -1.0]), np.array([-3.0, 0.0, 1.0, -0.5])
  assert hinge_discriminator_loss(real, fake) == pytest.approx((2.5 / 3 + 3.5 / 4) / 2)
  assert hinge_discriminator_loss(np.array([1.5]), np.array([-1.5])) == 0
  assert hinge_generator_loss(fake) == pytest.approx(0.625)
  assert hinge_generator_loss(jnp.full((2, 3, 3, 1), 3, jnp.bfloat16)).dtype == jnp.float32


def test_adaptive_weight():
  a, b = np.full((3, 3), 2.0, np.float32), np.full(9, 0.5, np.float32)
  assert adaptive_weight(a, b) == pytest.approx(4, rel=1e-3)
  assert adaptive_weight({"kernel": a, "bias": b}, [b]) == pytest.approx(17**0.5, rel=1e-3)
  assert adaptive_weight(1e9 * a, 0 * b) == pytest.approx(1e4)
  assert adaptive_weight(0 * a, 0 * b) == 0
  assert jax.grad(lambda scale: adaptive_weight(scale * a, b))(1.0) == 0
