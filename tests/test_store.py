"""Model folders: what may be replaced, two writers of one folder, and what is said of damaged parts."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from stablesr_jax.checkpoints.conversion import convert
from stablesr_jax.checkpoints.store import (
  EMBEDDED,
  NULL_PROMPT,
  Manifest,
  ModelWriter,
  load_params,
  read_manifest,
)
from stablesr_jax.cli import convert as command
from stablesr_jax.errors import UserError
from tests.micro import MODEL

UNET_ONLY = dataclasses.replace(MODEL, time_aware_encoder=None, autoencoder=None)


def write_prompt(folder: pathlib.Path, value: float) -> ModelWriter:
  """A writer of the smallest part there is; it has not committed it."""
  writer = ModelWriter(folder)
  writer.write(NULL_PROMPT, {NULL_PROMPT: np.full((77, 8), value, np.float32)})
  return writer


def prompt(folder: pathlib.Path) -> float:
  return float(load_params(folder, read_manifest(folder), [NULL_PROMPT])[NULL_PROMPT][0, 0])


def commit(writer: ModelWriter, name: str = "m") -> None:
  with writer:
    writer.commit(Manifest(name, UNET_ONLY))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# What may be replaced.


def test_a_model_alone_is_replaced(tmp_path):
  commit(write_prompt(tmp_path / "m", 1))
  commit(write_prompt(tmp_path / "m", 2))
  assert prompt(tmp_path / "m") == 2
  assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_model_of_another_version_is_replaced(tmp_path):
  (tmp_path / "m").mkdir()
  (tmp_path / "m" / "model.json").write_text(json.dumps({"name": "old", "format": 0, "architecture": {"gone": 1}}))
  commit(write_prompt(tmp_path / "m", 2))
  assert prompt(tmp_path / "m") == 2


@pytest.mark.parametrize(
  "files, message",
  [
    ({"model.json": '{"format": "layers-model"}', "group1.bin": "x"}, "its model.json is no converted model's"),
    ({"model.json": '{"format": "layers-model"}'}, "its model.json is no converted model's"),
    ({"model.json": "{"}, "its model.json is no converted model's"),
    ({"model.json": "ours", "w.safetensors": "x", "notes.txt": "x"}, "has notes.txt, w.safetensors, no part"),
    ({"model.json": "ours", "a": "", "b": "", "c": "", "d": "", "e": ""}, "has a, b, c and 2 more, no part"),
    ({"model.json": "ours", "photos/a.png": "x"}, "has photos, no part"),
    ({"model.json": "ours", "unet": "a file"}, "has unet, no part"),
    ({"photo.png": "x"}, "exists and is no converted model"),
  ],
)
def test_anything_else_is_not(tmp_path, files, message):
  folder = tmp_path / "m"
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    ours = json.dumps({"name": "m", "format": 1, "architecture": {}})
    (folder / name).write_text(ours if text == "ours" else text)
  before = contents(folder)
  with pytest.raises(UserError, match=f"^{folder}: {message}.*will not be replaced$"):
    ModelWriter(folder)
  assert contents(folder) == before and [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_file_is_not(tmp_path):
  (tmp_path / "m").write_text("x")
  with pytest.raises(UserError, match="m: exists and is no converted model"):
    ModelWriter(tmp_path / "m")


def test_what_came_while_the_model_was_written_stays(tmp_path):
  commit(write_prompt(tmp_path / "m", 1))
  writer = write_prompt(tmp_path / "m", 2)
  (tmp_path / "m" / "notes.txt").write_text("x")
  with pytest.raises(UserError, match="has notes.txt, no part"):
    commit(writer)
  assert prompt(tmp_path / "m") == 1 and (tmp_path / "m" / "notes.txt").exists()
  assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_command_tells_it_before_it_reads_anything(tmp_path, capsys):
  commit(write_prompt(tmp_path / "m", 1))
  (tmp_path / "m" / "w.safetensors").write_text("no tensors")
  with pytest.raises(SystemExit):
    command.main(["--input", str(tmp_path / "m" / "w.safetensors"), "--output", str(tmp_path / "m")])
  assert capsys.readouterr().err.endswith(
    "m: has w.safetensors, no part of a converted model; the folder will not be replaced\n"
  )
  assert (tmp_path / "m" / "w.safetensors").exists()


def test_an_input_within_a_part_of_the_output_is_refused(tmp_path):
  commit(write_prompt(tmp_path / "m", 1))
  file = tmp_path / "m" / NULL_PROMPT / "w.safetensors"
  file.write_text("no tensors")
  with pytest.raises(UserError, match="w.safetensors: lies in the output"):
    convert([file], tmp_path / "m")


# Two writers.


@pytest.mark.parametrize("existing", [False, True])
def test_of_two_writers_the_last_one_wins_whole(tmp_path, existing):
  if existing:
    commit(write_prompt(tmp_path / "m", 0))
  first, second = write_prompt(tmp_path / "m", 1), write_prompt(tmp_path / "m", 2)
  commit(second)
  assert prompt(tmp_path / "m") == 2
  commit(first)
  assert prompt(tmp_path / "m") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_one_that_commits_between_the_renames_of_another(tmp_path, monkeypatch):
  first, second = write_prompt(tmp_path / "m", 1), write_prompt(tmp_path / "m", 2)
  rename, others = pathlib.Path.rename, [second]

  def late(self, target):
    if others and self.name.endswith(".partial"):
      commit(others.pop())
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, "rename", late)
  commit(first)
  assert prompt(tmp_path / "m") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_model_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
  commit(write_prompt(tmp_path / "m", 1))
  writer, rename = write_prompt(tmp_path / "m", 2), pathlib.Path.rename

  def refuse(self, target):
    if self.name.endswith(".partial"):
      raise PermissionError(13, "refused")
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, "rename", refuse)
  with pytest.raises(PermissionError):
    commit(writer)
  assert prompt(tmp_path / "m") == 1
  assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_killed_writers_left_is_removed_a_day_later(tmp_path):
  new, old, other = (tmp_path / f".{name}.{digit * 32}.partial" for name, digit in (("m", "a"), ("m", "b"), ("n", "c")))
  for folder in (new, old, other):
    folder.mkdir()
  for folder in (old, other):
    os.utime(folder, (time.time() - 2 * 86400,) * 2)
  with ModelWriter(tmp_path / "m"):
    assert new.exists() and not old.exists() and other.exists()


# Damaged parts.


def flip(file: pathlib.Path) -> None:
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def halve(file: pathlib.Path) -> None:
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE = [
  (flip, "state/manifest.ocdbt", r"it is damaged \(state/manifest.ocdbt cannot be read\)"),
  (halve, "state/manifest.ocdbt", r"it is damaged \(state/manifest.ocdbt cannot be read\)"),
  (pathlib.Path.unlink, "state/manifest.ocdbt", r"it is damaged \(state/manifest.ocdbt is missing\)"),
  (halve, "state/_METADATA", r"it is damaged \(state/_METADATA cannot be read\)"),
  (pathlib.Path.unlink, "state/_METADATA", r"it is damaged \(state/_METADATA is missing\)"),
  (flip, "state/d/*", r"it is damaged \(state/d/\w+ cannot be read\)"),
  (halve, "state/d/*", r"it is damaged \(state/d/\w+ cannot be read\)"),
  (pathlib.Path.unlink, "state/d/*", r"it is damaged \(state/d/\w+ cannot be read\)"),
  (halve, "_CHECKPOINT_METADATA", r"it is damaged \(_CHECKPOINT_METADATA cannot be read\)"),
  (pathlib.Path.unlink, "_CHECKPOINT_METADATA", r"it is damaged \(_CHECKPOINT_METADATA is missing\)"),
  (shutil.rmtree, "state", r"it is damaged \(its arrays are missing\)"),
  (shutil.rmtree, "", "it is missing"),
]


@pytest.mark.parametrize("harm, where, message", DAMAGE)
def test_a_damaged_part_is_one_line(tmp_path, caplog, harm, where, message):
  shutil.copytree(EMBEDDED, tmp_path / "m")
  part = tmp_path / "m" / "unet"
  for file in part.glob(where) if where else [part]:
    harm(file)
  with pytest.raises(UserError, match=f"^{part}: cannot be loaded: {message}$"):
    load_params(tmp_path / "m", read_manifest(tmp_path / "m"), ["unet"])
  assert not caplog.records


def test_a_damaged_part_leaves_nothing_else_on_standard_error(tmp_path):
  shutil.copytree(EMBEDDED, tmp_path / "m")
  flip(tmp_path / "m" / "unet" / "state" / "manifest.ocdbt")
  program = "\n".join(
    [
      "import sys",
      "from stablesr_jax.checkpoints.store import load_params, read_manifest",
      "load_params(sys.argv[1], read_manifest(sys.argv[1]), ['unet'])",
    ]
  )
  done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "m")], capture_output=True, text=True)
  assert done.stderr.count("Traceback") == 1 and "Event loop is closed" not in done.stderr


@pytest.mark.parametrize("harm", [halve, pathlib.Path.unlink])
def test_damaged_data_are_told_in_few_words(tmp_path, caplog, harm):
  shutil.copytree(EMBEDDED, tmp_path / "m")
  part = tmp_path / "m" / "unet"
  for file in (part / "state" / "ocdbt.process_0" / "d").iterdir():
    harm(file)
  with pytest.raises(UserError, match=rf"^{part}: cannot be loaded: it is damaged \([\w/]+ cannot be read\)$"):
    load_params(tmp_path / "m", read_manifest(tmp_path / "m"), ["unet"])
  assert not caplog.records


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "getuid") and os.getuid() == 0), reason="root may read everything")
def test_what_the_system_refuses_is_not_called_damage(tmp_path):
  shutil.copytree(EMBEDDED, tmp_path / "m")
  (tmp_path / "m" / "unet" / "state" / "manifest.ocdbt").chmod(0)
  with pytest.raises(UserError, match="state/manifest.ocdbt: Permission denied$"):
    load_params(tmp_path / "m", read_manifest(tmp_path / "m"), ["unet"])
