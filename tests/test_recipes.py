"""The recipes of configs/, by themselves: what they train is in test_training_runs.py."""

import ast
import pathlib

import pytest

from stablesr_jax.cli.train import load_config
from stablesr_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_is_whole_in_itself(path):
  tree = ast.parse(path.read_text())
  imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
  imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
  assert not [name for name in imported if name and name.startswith(("configs", "stablesr_jax.recipes"))]
  assert "\nTime and result: " in (ast.get_docstring(tree) or "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_is_found_by_its_name(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config(pathlib.Path(path.stem)) == load_config(path)


def test_a_file_comes_before_a_recipe_and_a_folder_does_not(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "tiny_prior").mkdir()
  assert load_config(pathlib.Path("tiny_prior")) == load_config(FOLDER / "tiny_prior.py")
  (tmp_path / "mine.py").write_text((FOLDER / "tiny_cfw.py").read_text())
  assert load_config(pathlib.Path("mine.py")) == load_config(FOLDER / "tiny_cfw.py")


@pytest.mark.parametrize("name", ["stablesr_51", "elsewhere/stablesr_512", "__init__x", "stablesr_512.py"])
def test_an_unknown_name_lists_the_known_ones(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  known = ", ".join(path.stem for path in FILES)
  with pytest.raises(UserError) as error:
    load_config(pathlib.Path(name))
  assert str(error.value) == f"{name}: no such config file, and no recipe (recipes: {known})"
