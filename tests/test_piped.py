"""Pictures through pipes, what is told when the disk is short, and a run that is told to stop."""

import errno
import io
import os
import pathlib
import shutil
import signal
import sys
import threading

import pytest
from PIL import Image

from stablesr_jax.cli.common import INTERRUPTED
from stablesr_jax.cli.infer import main
from stablesr_jax.inference.pipeline import StableSR
from tests.micro import photograph
from tests.stub import Stub


@pytest.fixture
def stub(monkeypatch) -> Stub:
  stub = Stub()
  monkeypatch.setattr(StableSR, "load", lambda *args, **options: stub)
  return stub


def png() -> bytes:
  content = io.BytesIO()
  Image.fromarray(photograph(6, 8)).save(content, "PNG")
  return content.getvalue()


def size_of(content: bytes) -> tuple[int, int]:
  with Image.open(io.BytesIO(content)) as image:
    image.load()
    return image.size


def send(monkeypatch, content: bytes) -> None:
  """Has standard input hold this."""
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def run(source: object, target: object, *options: object) -> int:
  try:
    return main(["--input", str(source), "--output", str(target), *map(str, options)])
  except SystemExit as stop:
    assert isinstance(stop.code, int)
    return stop.code


def test_from_standard_input_to_standard_output(stub, monkeypatch, capsysbinary):
  send(monkeypatch, png())
  assert run("-", "-") == 0
  out, err = capsysbinary.readouterr()
  assert size_of(out) == (16, 12) and err == b""  # the picture and nothing else


def test_from_standard_input_to_a_file(stub, monkeypatch, tmp_path, capsys):
  send(monkeypatch, png())
  assert run("-", tmp_path / "out.webp") == 0
  assert size_of((tmp_path / "out.webp").read_bytes()) == (16, 12)
  assert capsys.readouterr().out == f"{tmp_path / 'out.webp'}\n"


def test_from_a_pipe_that_the_shell_opened(stub, tmp_path):
  read, write = os.pipe()
  with os.fdopen(read), os.fdopen(write, "wb") as pipe:
    pipe.write(png())
    pipe.close()
    assert run(f"/dev/fd/{read}", tmp_path / "out.png") == 0
  assert size_of((tmp_path / "out.png").read_bytes()) == (16, 12)


@pytest.mark.parametrize(
  "content, output, message",
  [
    (b"", "-", "standard input: cannot be read (the file is empty)"),
    (b"<html>", "-", "standard input: "),
    (png()[:100], "out.png", "standard input: "),
    (
      png(),
      "folder",
      "folder: standard input has no file name to call a result by; give a file (.png, .jpg, ...) or -",
    ),
    (png(), "missing/sub", "missing/sub: standard input has no file name to call a result by"),
  ],
)
def test_what_is_wrong_with_a_pipe_s_picture_is_one_line(
  stub, monkeypatch, tmp_path, capsysbinary, content, output, message
):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("folder").mkdir()
  send(monkeypatch, content)
  assert run("-", output) == 2
  out, err = capsysbinary.readouterr()
  assert out == b"" and err.decode().startswith(f"infer.py: error: {message}") and err.count(b"\n") == 1
  assert os.listdir() == ["folder"] and os.listdir("folder") == []


def test_too_little_space_is_told_before_the_work(stub, monkeypatch, tmp_path, capsys):
  Image.fromarray(photograph(6, 8)).save(tmp_path / "a.png")
  usage = shutil.disk_usage(tmp_path)
  for free, told in ((10**9, ""), (2000, "0.0 GB are free, the results may need 0.0")):
    monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
    assert run(tmp_path / "a.png", tmp_path / "out.png") == 0
    assert told in capsys.readouterr().err and size_of((tmp_path / "out.png").read_bytes()) == (16, 12)


def test_a_run_that_is_terminated_says_how_to_go_on(stub, monkeypatch, tmp_path, capsys):
  (tmp_path / "in").mkdir()
  for name in "abc":
    Image.fromarray(photograph(6, 8)).save(tmp_path / "in" / f"{name}.png")
  before, done = signal.getsignal(signal.SIGTERM), []

  def upscale_batch(images, **options):
    done.extend(images)
    if len(done) == 2:
      while not (tmp_path / "out" / "a.png").exists():
        pass
      signal.raise_signal(signal.SIGTERM)
    return Stub.upscale_batch(stub, images, **options)

  monkeypatch.setattr(stub, "upscale_batch", upscale_batch)
  assert threading.current_thread() is threading.main_thread()
  assert run(tmp_path / "in", tmp_path / "out") == INTERRUPTED
  told = "infer.py: stopped after 1 of 3 pictures; the same command again goes on with the others\n"
  assert told in capsys.readouterr().err
  assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".stablesr.jsonl", "a.png"]
  assert signal.getsignal(signal.SIGTERM) is before
  assert run(tmp_path / "in", tmp_path / "out") == 0 and len(done) == 4
  assert "2 restored, 1 as before" in capsys.readouterr().err


def test_closed_streams_are_told(stub, monkeypatch, tmp_path, capsys):
  Image.fromarray(photograph(6, 8)).save(tmp_path / "a.png")
  monkeypatch.setattr(sys, "stdin", None)
  assert run("-", tmp_path / "out.png") == 2
  assert capsys.readouterr().err == "infer.py: error: --input -: standard input is closed\n"
  monkeypatch.setattr(sys, "stdout", None)
  for options in ((), ("--dry-run",)):
    assert run(tmp_path / "a.png", "-", *options) == 2
    assert capsys.readouterr().err == "infer.py: error: standard output is closed\n"


def test_without_standard_error_nothing_gets_into_the_picture(stub, monkeypatch, tmp_path, capsysbinary):
  Image.fromarray(photograph(6, 8)).save(tmp_path / "a.png")
  monkeypatch.setattr(sys, "stderr", None)
  assert run(tmp_path / "a.png", "-", "--width", 16, "--height", 99) == 0
  assert capsysbinary.readouterr().out.startswith(b"\x89PNG")
  assert run(tmp_path / "missing.png", "-") == 2
  assert capsysbinary.readouterr().out == b""


@pytest.mark.parametrize(
  "error, code, message",
  [
    (BrokenPipeError(), 0, ""),
    (
      OSError(errno.ENOSPC, "No space left on device"),
      2,
      "standard output cannot be written (No space left on device)",
    ),
  ],
)
def test_a_picture_that_nobody_can_get(stub, monkeypatch, tmp_path, capsys, error, code, message):
  class Lost(io.RawIOBase):
    def write(self, content):
      raise error

    def writable(self):
      return True

    def fileno(self):
      return os.open(os.devnull, os.O_WRONLY)

  Image.fromarray(photograph(6, 8)).save(tmp_path / "a.png")
  lost = io.TextIOWrapper(Lost())  # pyright: ignore[reportArgumentType]
  monkeypatch.setattr(sys, "stdout", lost)
  assert run(tmp_path / "a.png", "-") == code
  assert capsys.readouterr().err == (f"infer.py: error: {message}\n" if message else "")
