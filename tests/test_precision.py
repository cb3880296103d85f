"""Products and convolutions are as precise as the settings say, whatever a device does by default."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import stablesr_jax
from benchmarks.training_memory import trace
from stablesr_jax.config import ComputeConfig, RRDBNetConfig, TextEncoderConfig
from stablesr_jax.models.components import COMPONENTS, _example, abstract_params, modules
from stablesr_jax.models.parameters import apply
from stablesr_jax.parallel import data_mesh
from tests import recipes
from tests.micro import MODEL

HIGHEST = jax.lax.Precision.HIGHEST


def precisions(jaxpr: Any) -> Iterator[bool]:
  """Whether each product and each convolution of a program, and of the programs within it, is of all bits."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      yield equation.params["precision"] == (HIGHEST, HIGHEST)
    for within in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda a: hasattr(a, "eqns")):
      if hasattr(within, "eqns") or hasattr(within, "jaxpr"):
        yield from precisions(getattr(within, "jaxpr", within))


@pytest.mark.parametrize("part", COMPONENTS)
def test_a_network_and_its_gradient(part):
  config = dataclasses.replace(
    MODEL,
    autoencoder=dataclasses.replace(MODEL.autoencoder, attention=True),  # pyright: ignore[reportArgumentType]
    text_encoder=TextEncoderConfig(vocabulary=8, context_length=4, width=8, layers=1, heads=2),
    precleaner=RRDBNetConfig(features=4, blocks=1, growth=2),
  )
  params, example = abstract_params(config, part), _example(config, part)
  total = lambda answer: sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(answer))
  for dtype, exact in (("float32", True), ("bfloat16", False)):
    module = modules(config, ComputeConfig(dtype=dtype, platform="tpu", remat=True))[part]
    gradient = jax.grad(lambda params, module=module: total(apply(module, params, *example)))
    found = list(precisions(jax.make_jaxpr(gradient)(params).jaxpr))
    assert len(found) > 5 and set(found) == {exact}


@pytest.mark.parametrize(
  "recipe", ["stablesr_512", "cfw_512", pytest.param("stablesr_512_one_step", marks=pytest.mark.slow)]
)
def test_a_training_step(recipe):
  config = recipes.micro(recipe)
  for dtype, exact in (("float32", True), ("bfloat16", False)):
    compute = ComputeConfig(dtype=dtype, platform="tpu", remat=True)
    traced, _ = trace(dataclasses.replace(config, compute=compute), data_mesh(jax.devices()[:1]), 2)
    found = list(precisions(traced.jaxpr.jaxpr))
    assert len(found) > 20 and set(found) == {exact}


def test_no_network_goes_another_way():
  package = pathlib.Path(stablesr_jax.__file__).parent
  found = [path for path in package.rglob("*.py") if ".apply(" in path.read_text()]
  assert [path.relative_to(package).as_posix() for path in found] == ["models/parameters.py"]
