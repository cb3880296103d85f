"""What the documents tell people to type."""

import pathlib
import re

import pytest

from stablesr_jax.cli import train

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_fields_that_documents_set_on_the_command_line_exist(capsys):
  there = set()
  for recipe in ("stablesr_512", "cfw_512", "tiny_autoencoder", "tiny_cfw_data", "stablesr_512_one_step"):
    with pytest.raises(SystemExit, match="0"):
      train.main(["--config", str(ROOT / "configs" / f"{recipe}.py"), "--help"])
    there |= set(re.findall(r"(--[a-z0-9.-]+)", capsys.readouterr().out))
  for document in DOCUMENTS:
    for flag, value in re.findall(r"[ `](--[a-z-]+\.[a-z0-9.-]+)(?: (\w+))?", document.read_text()):
      # `--stage.degradation` stands for all fields in it.
      assert any(name == flag or name.startswith(f"{flag}.") for name in there), f"{document.name}: {flag}"
      assert value not in ("True", "False"), f"{document.name}: {flag} takes no value"
