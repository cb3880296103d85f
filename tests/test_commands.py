"""The ways of calling the programs: `stablesr`, the scripts, and `python -m`."""

import os
import pathlib
import subprocess
import sys

import pytest

from stablesr_jax import __version__
from stablesr_jax.cli import common
from stablesr_jax.cli.main import main

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = ("jax", "torch", "transformers", "tensorflow", "pydantic")


def code_of(*arguments) -> int:
  try:
    return main([str(argument) for argument in arguments])
  except SystemExit as stop:
    assert isinstance(stop.code, int)
    return stop.code


def call(*arguments, **environment) -> subprocess.CompletedProcess:
  variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
  command = [sys.executable, *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)


def test_the_commands_are_listed(capsys):
  assert code_of("--help") == 0
  out = capsys.readouterr().out
  assert all(f"\n  {name} " in out for name in ("infer", "train", "convert", "pack"))
  assert code_of("--version") == 0 and capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "stablesr: error: choose a command: infer, train, convert, pack"),
    (["enlarge"], "stablesr: error: enlarge: no such command; choose infer"),
    (["infer", "--input", "a.png"], "stablesr infer: error: Missing from stablesr infer: --output"),
    (["infer", "--input", "nowhere.png", "--output", "b.png"], "stablesr infer: error: nowhere.png: no such file"),
    (["train"], "stablesr train: error: --config: name a file"),
    (["convert", "--input", "nowhere.ckpt"], "stablesr convert: error: give either --output"),
    (["pack", "--input", "nowhere", "--output", "x.array_record"], "stablesr pack: error: nowhere: no such folder"),
  ],
)
def test_messages_have_the_command_in_front(capsys, arguments, message):
  assert code_of(*arguments) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith(message) and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("command", ["infer", "convert", "pack"])
def test_the_help_shows_how_it_was_called(capsys, command):
  assert code_of(command, "--help") == 0
  out = capsys.readouterr().out
  assert f"usage: stablesr {command}" in out and f"    stablesr {command} --input" in out and "{prog}" not in out


def test_the_help_of_a_recipe_that_is_named(capsys):
  assert code_of("train", "--config", "tiny_prior", "--help") == 0
  assert "usage: stablesr train" in (out := capsys.readouterr().out) and "--optimizer.learning-rate" in out
  assert code_of("train", "--help") == 0
  assert "usage: stablesr train --config" in capsys.readouterr().out


def test_the_list_of_commands_is_quick():
  """It needs none of the libraries that take seconds to import."""
  program = f"""
import sys
from stablesr_jax.cli import common
from stablesr_jax.cli.main import main
main(["--help"])
sys.exit(" ".join(name for name in {HEAVY} if name in sys.modules) or None)
"""
  done = call("-c", program)
  assert done.returncode == 0 and "infer" in done.stdout, done.stderr


@pytest.mark.parametrize(
  "how, prog",
  [
    (["infer.py"], "infer.py"),
    (["-m", "stablesr_jax.cli.infer"], "python -m stablesr_jax.cli.infer"),
    (["-m", "stablesr_jax", "infer"], "python -m stablesr_jax infer"),
    (["-m", "stablesr_jax.cli.pack"], "python -m stablesr_jax.cli.pack"),
  ],
)
def test_every_way_of_calling_has_its_name(how, prog):
  done = call(*how, "--input", "nowhere", "--output", "out.png")
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith(f"{prog}: error: nowhere: no such ") and done.stderr.count("\n") == 1


def test_a_terminal_gets_one_line_too():
  """Where tyro would draw a box in colours."""
  pty = pytest.importorskip("pty")
  reader, terminal = pty.openpty()
  command = [sys.executable, "infer.py", "--input", "a", "--output", "b", "--sampler", "euler"]
  variables = {**os.environ, "TERM": "xterm", "COLUMNS": "30"}
  done = subprocess.run(command, cwd=ROOT, env=variables, stdout=terminal, stderr=terminal)
  os.close(terminal)
  shown = os.read(reader, 10_000).decode()
  os.close(reader)
  assert done.returncode == 2 and "\x1b" not in shown and shown.count("\n") == 1
  assert shown.startswith("infer.py: error: invalid choice 'euler' for argument '--sampler'. Expected one of")


# Standard output


@pytest.mark.parametrize("program", [["infer.py"], ["-m", "stablesr_jax"]])
def test_output_that_cannot_be_written_is_told(program):
  if not os.path.exists("/dev/full"):
    pytest.skip("no /dev/full")
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, *program, "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
    )
  message = "error: standard output cannot be written (No space left on device)\n"
  assert done.returncode == 2 and done.stderr.endswith(message) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error(buffered):
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, "infer.py", "--help"],
    cwd=ROOT,
    env={**os.environ, "PYTHONUNBUFFERED": buffered},
    stdout=writer,
    stderr=subprocess.PIPE,
    text=True,
  )
  os.close(writer)
  assert done.returncode == 0 and done.stderr == ""


def test_work_goes_on_when_nobody_reads_the_output():
  class Closed:
    def write(self, text):
      raise BrokenPipeError

    flush = write

  output = common.StandardOutput(Closed())
  print("a result", file=output, flush=True)
  print("another", file=output, flush=True)
  assert isinstance(output._error, BrokenPipeError)
