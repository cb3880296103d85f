"""Files that appear whole or not at all."""

import os
import pathlib

import pytest

from stablesr_jax.files import atomic_write


def test_a_file_appears_when_it_is_complete(tmp_path):
  path = tmp_path / "x.txt"
  path.write_text("older")
  with atomic_write(path) as temporary:
    assert temporary.parent == tmp_path
    temporary.write_text("new")
    assert path.read_text() == "older"
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path, kind):
  path = tmp_path / "x.txt"
  path.write_text("older")
  with pytest.raises(kind, match="no luck"), atomic_write(path) as temporary:
    temporary.write_text("half")
    raise kind("no luck")
  assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_an_error_before_anything_is_written(tmp_path):
  with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "nowhere" / "x") as temporary:
    temporary.write_text("x")
  assert not list(tmp_path.iterdir())


def test_an_error_while_cleaning_up_does_not_hide_the_first(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise PermissionError("cannot be removed")

  monkeypatch.setattr(pathlib.Path, "unlink", refuse)
  with pytest.raises(OSError, match="disk is full"), atomic_write(tmp_path / "x") as temporary:
    temporary.write_text("half")
    raise OSError("disk is full")


def test_what_cannot_be_put_in_place_is_removed(tmp_path):
  (tmp_path / "x" / "y").mkdir(parents=True)
  with pytest.raises(OSError), atomic_write(tmp_path / "x") as temporary:
    temporary.write_text("x")
  assert os.listdir(tmp_path) == ["x"]


def test_names_as_long_as_the_file_system_allows(tmp_path):
  path = tmp_path / ("ä" * 125 + ".png")
  with atomic_write(path) as temporary:
    temporary.write_text("x")
  assert path.read_text() == "x"
