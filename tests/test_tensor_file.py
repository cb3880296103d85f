"""The reader of checkpoints: every kind of file, foreign objects, malice, damage."""

import argparse
import builtins
import collections
import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import types
import warnings
import zipfile
from contextlib import closing

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from stablesr_jax.checkpoints import tensor_file
from stablesr_jax.errors import UserError

torch = pytest.importorskip("torch")

ARRAYS = {
  "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
  "a.half": np.array([1.5, -2.25], np.float16),
  "a.bfloat": np.array([[1.5], [-3.0]], ml_dtypes.bfloat16),
  "a.count": np.array(7, np.int64),
}


def _torch_tensors():
  tensors = {name: torch.from_numpy(np.array(x)) for name, x in ARRAYS.items() if x.dtype != ml_dtypes.bfloat16}
  tensors["a.bfloat"] = torch.tensor([[1.5], [-3.0]], dtype=torch.bfloat16)
  return collections.OrderedDict((name, tensors[name]) for name in ARRAYS)


def _assert_holds_arrays(file):
  assert sorted(file) == sorted(ARRAYS)
  for name, expected in ARRAYS.items():
    found = file.read(name)
    assert name in file
    assert file.shape(name) == found.shape == expected.shape
    assert file.dtype(name) == found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def foreign():
  """A module that is importable while its objects are pickled, and gone when they are read."""
  module = types.ModuleType("uninstalled")

  def add(name, *bases, **members):
    cls = type(name, bases, {"__module__": "uninstalled", **members})
    setattr(module, name, cls)
    return cls

  sys.modules["uninstalled"] = module
  yield add
  sys.modules.pop("uninstalled", None)


def _save(content, path, **options):
  torch.save(content, path, **options)
  sys.modules.pop("uninstalled", None)
  return path


@pytest.mark.parametrize("wrapper", ["state_dict", "params_ema", "generator", None])
@pytest.mark.parametrize("legacy", [False, True])
def test_reads_torch_files_at_any_level(tmp_path, wrapper, legacy):
  content = {wrapper: _torch_tensors(), "epoch": 3} if wrapper else _torch_tensors()
  path = _save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
  with closing(tensor_file.open_tensors(path)) as file:
    _assert_holds_arrays(file)
  with pytest.raises(ValueError, match="closed"):
    file.read("a.weight")


def test_reads_safetensors_whatever_the_suffix(tmp_path):
  path = tmp_path / "renamed.ckpt"
  safetensors.numpy.save_file(ARRAYS, path)
  with closing(tensor_file.open_tensors(str(path))) as file:
    _assert_holds_arrays(file)
    with pytest.raises(ValueError, match="no tensor 'b'"):
      file.read("b")


def test_prefers_averaged_weights_and_leaves_out_what_is_no_tensor(tmp_path):
  content = {"params": {"w": torch.zeros(2)}, "params_ema": {"w": torch.ones(2), "note": "text"}}
  with closing(tensor_file.open_tensors(_save(content, tmp_path / "x.pth"))) as file:
    assert list(file) == ["w"]
    np.testing.assert_array_equal(file.read("w"), [1, 1])


def test_reads_strided_views_and_parameters(tmp_path):
  matrix = torch.arange(12.0).reshape(3, 4)
  content = {"t": matrix.T, "b": matrix.to(torch.bfloat16).T[1:, ::2], "p": torch.nn.Parameter(matrix)}
  content["e"] = matrix.to(torch.float8_e4m3fn)
  with closing(tensor_file.open_tensors(_save(content, tmp_path / "x.pt"))) as file:
    np.testing.assert_array_equal(file.read("t"), matrix.numpy().T)
    np.testing.assert_array_equal(file.read("b").astype(np.float32), matrix.numpy().T[1:, ::2])
    np.testing.assert_array_equal(file.read("p"), matrix.numpy())
    assert file.read("e").dtype == file.dtype("e") == ml_dtypes.float8_e4m3fn
    np.testing.assert_array_equal(file.read("e").astype(np.float32), matrix.numpy())


def test_what_numpy_cannot_hold_is_named_when_read(tmp_path):
  content = {"ok": torch.ones(1), "sparse": torch.eye(2).to_sparse(), "pair": torch.ones(2, dtype=torch.complex64)}
  with closing(tensor_file.open_tensors(_save(content, tmp_path / "x.pt"))) as file:
    assert file.read("ok") == 1
    for name in ("sparse", "pair"):
      with pytest.raises(ValueError, match=f"tensor '{name}' is of a kind that is not supported"):
        file.read(name)


def test_foreign_objects_become_stand_ins(tmp_path, foreign):
  plain = foreign("Plain")
  made = foreign("Made", object, __reduce__=lambda self: (made, (1, "x"), {"k": 1}), __init__=lambda self, *a: None)
  stateful = foreign("Stateful", object, __setstate__=lambda s, x: None, __getstate__=lambda s: ("a", [1]))
  settings, listed, both = foreign("Settings", dict), foreign("Listed", list), foreign("Both", dict)
  with_attributes = both(a=1)
  with_attributes.__dict__["b"] = 2
  content = {
    "callbacks": {plain: plain(), "score": np.float64(0.5), "array": np.arange(3)},
    "objects": [made(), stateful(), argparse.Namespace(a=1), pathlib.PurePosixPath("a/b"), np.dtype("f4")],
    "hyper_parameters": settings(rate=0.1, inner=settings(x=[settings(y=1)])),
    "containers": [listed([1, 2]), listed([3]), with_attributes, collections.defaultdict(list, a=[1]), {plain()}],
    "queue": collections.deque([1, 2, 3]),
    "state_dict": _torch_tensors(),
  }
  path = _save(content, tmp_path / "x.ckpt")
  with pytest.raises(Exception, match="uninstalled|Unsupported"):  # torch by itself refuses
    torch.load(path, weights_only=True)
  allowed = torch.serialization.get_safe_globals()
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    with closing(tensor_file.open_tensors(path)) as file:
      _assert_holds_arrays(file)
  assert "uninstalled" not in sys.modules
  assert set(torch.serialization.get_safe_globals()) == set(allowed)  # torch keeps a set: the order is not fixed


class _Call:
  """Pickles as a call of `function`."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def _malice(marker):
  return {
    "builtins.eval": _Call(eval, f"open({str(marker)!r}, 'w')"),
    "builtins.exec": _Call(exec, f"open({str(marker)!r}, 'w').close()"),
    "builtins.open": _Call(builtins.open, str(marker), "w"),
    "subprocess.Popen": _Call(subprocess.Popen, ["touch", str(marker)]),
    "pathlib": _Call(pathlib.Path.touch, pathlib.Path(marker)),
    "os.system": _Call(os.system, f"touch {marker}"),
    "os.mkdir": _Call(os.mkdir, str(marker)),
  }


@pytest.mark.parametrize("name", _malice("x"))
@pytest.mark.parametrize("place", ["beside", "among", "legacy"])
def test_nothing_in_a_file_is_run(tmp_path, name, place):
  marker = tmp_path / "marker"
  evil = _malice(marker)[name]
  tensors = _torch_tensors()
  content = {"state_dict": {**tensors, "evil": evil}} if place == "among" else {"x": evil, "state_dict": tensors}
  path = _save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=place != "legacy")
  with closing(tensor_file.open_tensors(path)) as file:
    _assert_holds_arrays(file)
  assert not marker.exists()
  # The file is malicious indeed: reading it as Python would runs the call.
  with_effect = torch.load(path, weights_only=False)
  value = (with_effect["state_dict"] if place == "among" else with_effect).get("evil" if place == "among" else "x")
  if isinstance(value, subprocess.Popen):
    value.wait()
  elif hasattr(value, "close"):
    value.close()
  assert marker.exists()


def _zip_without_pickle(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("readme.txt", "x")


def _compressed(path):
  """What inflates out of proportion is not unpacked at all."""
  torch.save({"x": torch.zeros(10**6)}, path)
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      archive.writestr(name, data)


def _torchscript(path):
  with zipfile.ZipFile(path, "w") as archive:
    for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
      archive.writestr(f"x/{name}", b"x")


def _truncated(saver):
  def write(path):
    saver(path)
    path.write_bytes(path.read_bytes()[:-20])

  return write


def _save_safetensors(path):
  safetensors.numpy.save_file(ARRAYS, path)


@pytest.mark.parametrize(
  ("write", "message"),
  [
    (lambda p: None, "no such file"),
    (lambda p: p.mkdir(), "is a folder"),
    (lambda p: p.write_bytes(b""), "is empty"),
    (lambda p: p.write_bytes(b"\n<!DOCTYPE html><html>"), "is a web page"),
    (
      lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"),
      "git-lfs pointer",
    ),
    (lambda p: p.write_bytes(bytes(range(1, 9)) + b"\1" * 600), "is not a checkpoint"),
    (lambda p: p.write_bytes(b"\x80\x04]."), "Python pickle that torch.save did not write"),
    (_zip_without_pickle, "zip archive, but not a PyTorch checkpoint"),
    (_truncated(lambda p: torch.save(_torch_tensors(), p)), "truncated or damaged"),
    (_truncated(_save_safetensors), "truncated or damaged"),
    (_truncated(lambda p: torch.save(_torch_tensors(), p, _use_new_zipfile_serialization=False)), "cut short"),
    (_compressed, "another program compressed"),
    (lambda p: p.write_bytes(bytes(2) + b"\xff" * 6 + b'{"a":1}' + bytes(99)), "its header would have"),
    (lambda p: p.write_text("\ufeff<!DOCTYPE html><html>"), "is a web page"),
    (lambda p: p.write_text('{"error":"Invalid username or password."}'), "is JSON, not a checkpoint"),
    (lambda p: p.write_bytes(b"GGUF\3\0\0\0" + bytes(99)), "GGUF"),
    (lambda p: torch.save(torch.nn.Linear(2, 2), p), "holds an object (torch.nn.modules.linear.Linear)"),
    (_torchscript, "TorchScript"),
    (lambda p: torch.save({"epoch": 3}, p), "has no tensors"),
    (lambda p: torch.save(torch.ones(2), p), "holds a Tensor, not tensors by name"),
    (lambda p: torch.save({"g": {"w": torch.ones(1)}, "d": {"w": torch.ones(1)}}, p), "under several names (g, d)"),
    (lambda p: safetensors.numpy.save_file({}, p), "has no tensors"),
  ],
)
def test_each_unusable_file_gets_its_message(tmp_path, write, message):
  path = tmp_path / "x.ckpt"
  write(path)
  with pytest.raises((ValueError, FileNotFoundError)) as caught:
    tensor_file.open_tensors(path)
  assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
  assert "\n" not in str(caught.value)


def test_torch_is_not_needed(tmp_path, monkeypatch):
  torch.save(_torch_tensors(), tmp_path / "x.ckpt")
  torch.save(_torch_tensors(), tmp_path / "y.ckpt", _use_new_zipfile_serialization=False)
  for name in ("x.ckpt", "y.ckpt"):
    with closing(tensor_file.open_tensors(tmp_path / name)) as file:
      _assert_holds_arrays(file)


def test_a_changed_byte_of_a_tensor_is_found(tmp_path):
  path = tmp_path / "x.ckpt"
  torch.save({"w": torch.full((1000,), 0.5)}, path)
  data = bytearray(path.read_bytes())
  data[data.find(np.float32(0.5).tobytes() * 10) + 6] ^= 1
  path.write_bytes(data)
  with closing(tensor_file.open_tensors(path)) as file, pytest.raises(UserError, match="'w' is damaged"):
    file.read("w")


def test_a_tensor_that_claims_to_be_huge_takes_no_memory(tmp_path):
  torch.save({"w": torch.zeros(1).expand(10**6, 10**6), "few": torch.ones(1).expand(3, 5)}, tmp_path / "x.pt")
  with closing(tensor_file.open_tensors(tmp_path / "x.pt")) as file:
    np.testing.assert_array_equal(file.read("few"), np.ones((3, 5), np.float32))
    with pytest.raises(UserError, match="expanded"):
      file.read("w")


@pytest.mark.parametrize("outer", ["model", "params", "module"])
def test_levels_are_found_however_deep(tmp_path, outer):
  state = {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, outer: {"state_dict": _torch_tensors(), "epoch": 2}}
  state["itself"] = state
  with closing(tensor_file.open_tensors(_save(state, tmp_path / "x.pt"))) as file:
    _assert_holds_arrays(file)
  both = {"g": {"state_dict": _torch_tensors()}, "d": {"state_dict": _torch_tensors()}}
  with pytest.raises(UserError, match=r"several names \(g.state_dict, d.state_dict\)"):
    tensor_file.open_tensors(_save(both, tmp_path / "y.pt"))


def test_sha256(tmp_path):
  (tmp_path / "x").write_bytes(b"abc" * 1000)
  assert tensor_file.sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()
  with pytest.raises(UserError, match="no such file"):
    tensor_file.sha256(tmp_path / "y")
  with pytest.raises(ValueError, match="is a folder"):
    tensor_file.sha256(tmp_path)


def _load_script(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[path.stem] = module
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("wrapper", ["state_dict", "params_ema"])
def test_synthetic_checkpoints_hold_the_rule(tmp_path, monkeypatch, suffix, wrapper):
  root = pathlib.Path(__file__).parents[1]
  script = _load_script(root / "examples" / "synthetic_checkpoint.py")
  rule = _load_script(root / "tests" / "reference" / "synthetic.py")
  start = "params_ema." if wrapper == "params_ema" else ""
  rows = {"net.weight": "5x3x2x2", "net.norm.weight": "7", "net.norm.bias": "7"}
  zeros = {} if start else {"betas": "10", "net.logit_scale": "scalar"}
  listing = tmp_path / "x_checkpoint.tsv"
  lines = ["name\tshape\tdtype", *(f"{start}{n}\t{s}\tfloat32" for n, s in {**zeros, **rows}.items())]
  listing.write_text("\n".join(lines) + "\n")
  (tmp_path / "meta.json").write_text('{"salt": 5}')
  out = tmp_path / f"out{suffix}"

  for options, salt, name, scale in (
    ([], 5, lambda key: start + key, 1),
    (["--salt", "2", "--scale", "0.5", "--prefix", "rrdb."], 2, lambda key: "rrdb." + key, 0.5),
  ):
    monkeypatch.setattr(sys, "argv", ["synthetic_checkpoint.py", str(listing), str(out), *options])
    script.main()
    with closing(tensor_file.open_tensors(out)) as file:
      assert sorted(file) == sorted({**zeros, **rows})
      for key, text in rows.items():
        expected = rule.tensor(name(key), tuple(map(int, text.split("x"))), salt)
        np.testing.assert_array_equal(file.read(key), np.float32(scale) * expected)
      for key in zeros:
        assert not file.read(key).any()
      if zeros:
        assert file.shape("betas") == (10,) and file.shape("net.logit_scale") == ()
  if suffix == ".ckpt" and wrapper == "state_dict":
    names = torch.serialization.get_unsafe_globals_in_checkpoint(out)
    assert {"uninstalled_trainer.ModelCheckpoint", "uninstalled_trainer.AttributeDict"} <= set(names)
