"""LPIPS against an independent network of PyTorch's layers; its conversion, also at full size."""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stablesr_jax.checkpoints.conversion import convert
from stablesr_jax.checkpoints.export import export
from stablesr_jax.checkpoints.store import LPIPSManifest, load_lpips, read_manifest
from stablesr_jax.checkpoints.tensor_file import sha256
from stablesr_jax.cli import convert as command
from stablesr_jax.config import ComputeConfig, LPIPSConfig
from stablesr_jax.models.lpips import LPIPS, abstract_params
from tests.micro import photograph

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's list


def features(divisor: int = 1) -> torch.nn.Sequential:
  """torchvision's `vgg16().features`, at a fraction of its width."""
  layers, channels = [], 3
  for width in VGG16:
    if isinstance(width, str):
      layers.append(torch.nn.MaxPool2d(2, 2))
    else:
      layers += [torch.nn.Conv2d(channels, width // divisor, 3, padding=1), torch.nn.ReLU()]
      torch.nn.init.kaiming_normal_(layers[-2].weight)
      torch.nn.init.normal_(layers[-2].bias, std=0.1)
      channels = width // divisor
  return torch.nn.Sequential(*layers).requires_grad_(False)


class Reference:
  """LPIPS v0.1 step by step as its paper and package define it."""

  def __init__(self, divisor: int = 1):
    torch.manual_seed(0)
    self.features = features(divisor)
    self.heads = [torch.rand(1, c // divisor, 1, 1) for c in (64, 128, 256, 512, 512)]

  def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    x, y, total = (a - shift) / scale, (b - shift) / scale, 0
    for i, layer in enumerate(self.features[:-1]):  # nothing is tapped after the last pooling
      x, y = layer(x), layer(y)
      if i in TAPS:
        unit_x, unit_y = (f / (torch.sqrt((f**2).sum(1, keepdim=True)) + 1e-10) for f in (x, y))
        head = self.heads[TAPS.index(i)]
        total += torch.nn.functional.conv2d((unit_x - unit_y) ** 2, head).mean((2, 3))[:, 0]
    return total

  def vgg16(self) -> dict[str, torch.Tensor]:
    """As torchvision's file, its classifier cut short."""
    classifier = {f"classifier.{i}.{leaf}": torch.zeros(2) for i in (0, 3, 6) for leaf in ("weight", "bias")}
    return {f"features.{key}": value for key, value in self.features.state_dict().items()} | classifier

  def linear_heads(self) -> dict[str, torch.Tensor]:
    """As the lpips package's weights/v0.1/vgg.pth."""
    return {f"lin{i}.model.1.weight": head for i, head in enumerate(self.heads)}

  def whole(self) -> dict[str, torch.Tensor]:
    """As the lpips package's whole module is saved."""
    content = {"scaling_layer.shift": torch.zeros(1, 3, 1, 1), "scaling_layer.scale": torch.zeros(1, 3, 1, 1)}
    for key, value in self.features.state_dict().items():
      stage = sum(int(key.split(".")[0]) > tap for tap in TAPS)
      content[f"net.slice{stage + 1}.{key}"] = value
    return content | self.linear_heads() | {f"lins.{k[3:]}": value for k, value in self.linear_heads().items()}


def files(reference: Reference, folder):
  vgg16, heads = folder / "vgg16-397923af.pth", folder / "vgg.pth"
  torch.save(collections.OrderedDict(reference.vgg16()), vgg16)
  torch.save(collections.OrderedDict(reference.linear_heads()), heads)
  return vgg16, heads


def quiet(*args, **kwargs):
  lines: list[str] = []
  return convert(*args, report=lines.append, **kwargs), lines


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
  """(reference, folder, its two files) at an eighth of the width."""
  reference, folder = Reference(divisor=8), tmp_path_factory.mktemp("narrow")
  return reference, folder, files(reference, folder)


@pytest.fixture(scope="module", params=[8, pytest.param(1, marks=pytest.mark.full)], ids=["narrow", "full"])
def converted(request, tmp_path_factory):
  """(reference, folder, manifest, report, divisor of the width)"""
  reference, folder = Reference(request.param), tmp_path_factory.mktemp("lpips")
  vgg16, heads = files(reference, folder)
  manifest, lines = quiet([heads, vgg16], folder / "converted")
  return reference, folder, manifest, lines, request.param


def pair(height: int, width: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
  """A photograph and a noisy copy, (batch, height, width, 3) in [-1, 1]; in a batch all different."""
  a = np.stack([photograph(height, width)] * batch) / np.float32(127.5) - 1
  noise = np.random.default_rng(0).standard_normal(a.shape, np.float32)
  return a, np.clip(a + 0.2 * np.arange(1, batch + 1, dtype=np.float32).reshape(-1, 1, 1, 1) * noise, -1, 1)


def to_torch(array: np.ndarray) -> torch.Tensor:
  return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def test_the_converted_network_agrees_with_pytorch(converted):
  reference, folder, *_ = converted
  module, params = load_lpips(folder / "converted")
  a, b = pair(48, 67)  # odd sizes are cut when pooled
  ours = jax.jit(module.apply)({"params": params}, a, b)
  assert ours.shape == (2,) and ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, reference(to_torch(a), to_torch(b)), rtol=1e-4)
  assert ours[1] > ours[0] > 0


def test_report_and_manifest(converted):
  _, folder, manifest, lines, divisor = converted
  assert lines[:2] == ["vgg16-397923af.pth: VGG16", "vgg.pth: LPIPS's linear heads"]
  assert f"lpips: {14.7 / divisor**2:.1f} M parameters" in lines
  [left_out] = [line for line in lines if "left out" in line]
  assert "left out 6 (VGG16's classifier, which LPIPS does not use)" in left_out
  assert isinstance(manifest, LPIPSManifest) and manifest.lpips == LPIPSConfig(64 // divisor)
  values = json.loads((folder / "converted/model.json").read_text())
  assert values["lpips"] == {"width": 64 // divisor, "stages": 5}
  digests = {source["file"]: source["sha256"] for source in values["sources"]}
  assert digests == {name: sha256(folder / name) for name in ("vgg16-397923af.pth", "vgg.pth")}
  assert not list(folder.glob(".*")), "leftovers"


def test_gradient(narrow, tmp_path):
  reference, _, paths = narrow
  quiet(paths, tmp_path / "lpips")
  a, b = pair(16, 24)
  theirs = to_torch(a).requires_grad_()
  reference(theirs, to_torch(b)).sum().backward()
  expected = np.moveaxis(theirs.grad.numpy(), 1, -1)
  module, params = load_lpips(tmp_path / "lpips", ComputeConfig(remat=True))
  gradient = jax.jit(jax.grad(lambda a, params: module.apply({"params": params}, a, jnp.asarray(b)).sum()))
  np.testing.assert_allclose(gradient(a, params), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
  # Where all features are zero, so is the gradient, and nothing on its way is NaN.
  dead = jax.tree_util.tree_map_with_path(lambda path, p: p - 100 if path[-1].key == "bias" else p, params)
  with jax.debug_nans(True):
    np.testing.assert_array_equal(gradient(a, dead), np.zeros_like(a))


def test_the_packages_whole_module_makes_the_same_network(narrow, tmp_path):
  reference, _, paths = narrow
  torch.save(reference.whole(), tmp_path / "whole.pth")
  _, lines = quiet([tmp_path / "whole.pth"], tmp_path / "a")
  assert not any("unknown" in line for line in lines)
  quiet(paths, tmp_path / "b")
  (module, a), (_, b) = load_lpips(tmp_path / "a"), load_lpips(tmp_path / "b")
  assert module.config == LPIPSConfig(width=8)
  assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def test_stored_dtype(narrow, tmp_path):
  _, _, paths = narrow
  manifest, _ = quiet(paths, tmp_path / "lpips", dtype="bfloat16")
  assert manifest.dtype == "bfloat16"
  _, params = load_lpips(tmp_path / "lpips")
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def distance():
  """A tiny network with random parameters, as tests of training may use it."""
  module, rng = LPIPS(LPIPSConfig(width=4), ComputeConfig(dtype="bfloat16")), np.random.default_rng(0)

  def fill(path, leaf):
    if path[-2].key.startswith("head"):
      return rng.uniform(size=leaf.shape).astype(np.float32)
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.1
    return np.float32(scale) * rng.standard_normal(leaf.shape, np.float32)

  params = jax.tree_util.tree_map_with_path(fill, abstract_params(module.config))
  return jax.jit(lambda a, b: module.apply({"params": params}, a, b))


def test_a_random_network_in_bfloat16_is_a_distance(distance):
  a, b = pair(16, 16)
  np.testing.assert_allclose(distance(a, a), np.zeros(2), atol=1e-12)
  assert distance(a, b)[1] > distance(a, b)[0] > 0 and distance(a, b).dtype == jnp.float32
  np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-5)


def test_images_that_cannot_be_compared(distance):
  with pytest.raises(ValueError, match="images of 40x15 are too small: LPIPS needs 16x16"):
    distance(*pair(15, 40))
  with pytest.raises(ValueError, match="cannot be compared"):
    distance(pair(16, 16)[0], pair(16, 24)[0])


def test_full_size_shapes():
  tree = abstract_params(LPIPSConfig())
  assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 14_714_688 + 1_472
  assert tree["stage_4"]["conv_2"]["kernel"].shape == (3, 3, 512, 512)
  assert [tree[f"head_{i}"]["kernel"].shape for i in range(5)] == [(c, 1) for c in (64, 128, 256, 512, 512)]


def test_a_missing_file_is_named(narrow, tmp_path):
  _, _, (vgg16, heads) = narrow
  with pytest.raises(ValueError, match=r"vgg16-397923af.pth: VGG16; add .*lpips package holds: weights/v0.1/vgg.pth"):
    quiet([vgg16], tmp_path / "lpips")
  with pytest.raises(ValueError, match=r"vgg.pth: LPIPS's linear heads; add torchvision's VGG16: vgg16-397923af.pth"):
    quiet([heads], tmp_path / "lpips")
  assert not list(tmp_path.iterdir())


def test_other_mistakes(narrow, tmp_path):
  reference, _, (vgg16, heads) = narrow
  alex = tmp_path / "alex.pth"
  widths = (64, 192, 384, 256, 256)
  torch.save({f"lin{i}.model.1.weight": torch.zeros(1, c, 1, 1) for i, c in enumerate(widths)}, alex)
  with pytest.raises(ValueError, match="alex.pth: lin0.model.1.weight has shape 1x64x1x1, which does not fit 8x1"):
    quiet([vgg16, alex], tmp_path / "lpips")
  short = reference.vgg16()
  del short["features.26.bias"]
  torch.save(short, tmp_path / "short.pth")
  with pytest.raises(ValueError, match=r"lpips lacks 1 of 31 tensors \(first: features.26.bias\)"):
    quiet([tmp_path / "short.pth", heads], tmp_path / "lpips")
  generator = {f"{name}.weight": torch.zeros(1) for name in ("conv_first", "body.0.rdb1.conv1", "conv_up1")}
  torch.save(generator, tmp_path / "generator.pth")
  with pytest.raises(ValueError, match="generator.pth: a Real-ESRGAN generator; LPIPS has a folder of its own"):
    quiet([vgg16, heads, tmp_path / "generator.pth"], tmp_path / "lpips")
  with pytest.raises(ValueError, match="neither an architecture nor a prediction"):
    quiet([vgg16, heads], tmp_path / "lpips", prediction="v")
  assert not (tmp_path / "lpips").exists() and not list(tmp_path.glob(".*"))


def test_folders_are_not_mistaken(converted, tmp_path):
  _, folder, *_ = converted
  with pytest.raises(ValueError, match="an LPIPS network, not a StableSR model"):
    read_manifest(folder / "converted")
  with pytest.raises(ValueError, match="an LPIPS network, not a StableSR model"):
    export(folder / "converted", tmp_path / "out.safetensors")
  (tmp_path / "model.json").write_text('{"format": 1, "name": "x", "architecture": {}}')
  with pytest.raises(ValueError, match="a StableSR model, not an LPIPS network"):
    load_lpips(tmp_path)
  with pytest.raises(ValueError, match="no such model folder"):
    load_lpips(tmp_path / "nowhere")
  (tmp_path / "model.json").write_text('{"format": 1, "name": "x", "lpips": {"width": 8}}')
  with pytest.raises(ValueError, match="lpips: cannot be loaded"):
    load_lpips(tmp_path)


def test_command_line(narrow, tmp_path, capsys):
  _, _, (vgg16, heads) = narrow
  assert command.main(["--input", str(vgg16), str(heads), "--output", str(tmp_path / "lpips")]) == 0
  assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "lpips")
  with pytest.raises(SystemExit) as stop:
    command.main(["--input", str(vgg16), "--output", str(tmp_path / "other")])
  assert stop.value.code == 2
  [line] = capsys.readouterr().err.splitlines()
  assert "add LPIPS's linear heads" in line
