"""How errors end a program: what a person can mend in one line, a bug with its traceback."""

import errno
import pathlib
import warnings

import jax
import numpy as np
import pytest

from stablesr_jax import StableSR, compilation, parallel
from stablesr_jax.cli import common, infer, train
from stablesr_jax.errors import UserError
from stablesr_jax.images import Picture, write_image
from stablesr_jax.inference.jobs import Report, restore_folder
from tests.stub import Stub


@pytest.fixture
def stub(monkeypatch) -> Stub:
  model = Stub()
  monkeypatch.setattr(StableSR, "load", lambda *_, **__: model)
  monkeypatch.delenv("STABLESR_TRACEBACK", raising=False)
  return model


def save(folder: pathlib.Path, name: str, value: int = 0) -> pathlib.Path:
  folder.mkdir(parents=True, exist_ok=True)
  write_image(folder / name, Picture(np.full((4, 5, 3), value / 255, np.float32)))
  return folder / name


def code_of(main, *arguments) -> int:
  try:
    return main([str(argument) for argument in arguments])
  except SystemExit as stop:
    assert isinstance(stop.code, int)
    return stop.code


def run(source, target, *options) -> int:
  arguments = ["--input", source, "--output", target, "--compile-cache", "off", *options]
  if "--scale" not in options:
    arguments += ["--scale", 2]
  return code_of(infer.main, *arguments)


def caused(kind: type[Exception], message: str) -> Exception:
  """An error with a cause and a traceback."""
  try:
    try:
      raise KeyError("the cause")
    except KeyError as cause:
      raise kind(message) from cause
  except kind as error:
    return error


# One picture


def test_a_bug_keeps_its_traceback(stub, tmp_path, capsys):
  stub.errors[0] = caused(ValueError, "shapes (3,) and (4,) do not fit")
  assert run(save(tmp_path, "a.png"), tmp_path / "out.png") == 1
  lines = capsys.readouterr().err.splitlines()
  assert "Traceback (most recent call last):" in lines and "KeyError: 'the cause'" in lines
  assert lines[-2] == "ValueError: shapes (3,) and (4,) do not fit"
  assert lines[-1].startswith(f"infer.py: {tmp_path / 'a.png'}: this is a bug in stablesr_jax")
  assert f"jax {jax.__version__}" in lines[-1]


def test_a_bug_outside_of_the_pictures_too(stub, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(stub, "check", lambda sampling: [][0])
  assert run(save(tmp_path, "a.png"), tmp_path / "out.png") == 1
  *_, error, last = capsys.readouterr().err.splitlines()
  assert error == "IndexError: list index out of range" and last.startswith("infer.py: this is a bug")


@pytest.mark.parametrize("traced", [False, True])
def test_what_a_person_can_mend_is_one_line(stub, tmp_path, capsys, monkeypatch, traced):
  if traced:
    monkeypatch.setenv("STABLESR_TRACEBACK", "1")
  stub.errors[0] = caused(UserError, "fidelity-weight 2:\n  must be 0 to 1")
  source = save(tmp_path, "a.png")
  assert run(source, tmp_path / "out.png") == 2
  *traceback, last = capsys.readouterr().err.splitlines()
  assert last == f"infer.py: error: {source}: fidelity-weight 2: must be 0 to 1"
  assert ("KeyError: 'the cause'" in traceback) == traced == bool(traceback)


def test_the_causes_of_a_wrong_recipe_are_shown_if_wanted(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv("STABLESR_TRACEBACK", "1")
  (tmp_path / "wrong.py").write_text("def get_config():\n  return undefined\n")
  assert code_of(train.main, "--config", tmp_path / "wrong.py", "--workdir", tmp_path) == 2
  *traceback, last = capsys.readouterr().err.splitlines()
  assert "NameError: name 'undefined' is not defined" in traceback
  assert last == f"train.py: error: {tmp_path / 'wrong.py'}:2: NameError: name 'undefined' is not defined"


@pytest.mark.parametrize(
  "error, message",
  [
    (OSError(errno.ENOSPC, "No space left on device", "/disk/file"), "/disk/file: No space left on device"),
    (PermissionError(errno.EACCES, "Permission denied", "/disk/file"), "/disk/file: Permission denied"),
    (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", b"file"), "file: No such file or directory"),
    (
      ValueError("Error writing local file \"/disk/a\": Failed to write [os_error_code='28'] [x='']"),
      "/disk/a: No space left on device",
    ),
    (MemoryError(), "out of memory; buy some"),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nBuffers:"), "out of memory; buy some"),
    (UserError("two\nlines"), "two lines"),
    (ValueError("shapes"), None),
    (OSError("no errno"), None),
    (OSError(errno.EBADF, "Bad file descriptor"), None),
    (jax.errors.JaxRuntimeError("INTERNAL: oh"), None),
  ],
)
def test_what_a_person_can_mend(error, message):
  assert common.explain(error, "buy some") == message


@pytest.mark.parametrize(
  "options, message",
  [
    (["--guidance-scale", "inf"], "guidance-scale inf: must be a finite number"),
    (["--guidance-scale", "nan"], "guidance-scale nan: must be a finite number"),
    (["--fidelity-weight", "nan"], "fidelity-weight nan: must be a finite number"),
    (["--eta=-inf"], "eta -inf: must be a finite number"),
    (["--scale", "nan"], "scale nan: must be a finite number"),
    (["--scale", "inf"], "scale inf: must be a finite number"),
  ],
)
def test_numbers_that_are_none_are_told_before_the_model_is_loaded(tmp_path, capsys, monkeypatch, options, message):
  monkeypatch.setattr(StableSR, "load", lambda *_, **__: pytest.fail("loaded"))
  assert run(save(tmp_path, "a.png"), tmp_path / "out.png", *options) == 2
  assert capsys.readouterr().err == f"infer.py: error: {message}\n"


TOO_LARGE = "scale {}: the result of 5x4 pixels would be too large (at most 4.3 gigapixels, and sides of 2147483647)"


@pytest.mark.parametrize(
  "scale, suffix, message",
  [
    ("1e300", ".png", TOO_LARGE.format("1e+300")),
    (1e6, ".png", TOO_LARGE.format("1000000.0")),
    (1.4e4, ".jpg", "JPEG holds at most 65535 pixels a side; use .png or .tif"),
    (1e4, ".tif", "TIFF holds at most 4 GB; use .png"),
  ],
)
def test_results_too_large_for_anything_are_told_before_the_work(stub, tmp_path, capsys, scale, suffix, message):
  stub.errors[0] = AssertionError("worked on")
  assert run(save(tmp_path, "a.png"), tmp_path / f"out{suffix}", "--scale", scale) == 2
  err = capsys.readouterr().err
  assert err.endswith(f": {message}\n") and err.count("\n") == 1


@pytest.mark.parametrize(
  "message, line",
  [
    (
      "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'",
      "JAX_ENABLE_X64=maybe: JAX does not take this value",
    ),
    ('Invalid value "maybe" for JAX flag jax_enable_x64', "JAX_ENABLE_X64=maybe: JAX does not take this value"),
    ("Invalid value for JAX flag jax_num_cpu_devices", None),  # not from the environment
  ],
)
def test_what_jax_refuses_when_it_is_imported(monkeypatch, message, line):
  monkeypatch.setenv("JAX_ENABLE_X64", "maybe")
  monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
  assert common.explain(ValueError(message)) == line


# Folders


def test_errors_of_single_pictures_do_not_stop_the_others(stub, tmp_path, capsys):
  for value in range(4):
    save(tmp_path / "in", f"{value}.png", value)
  value = lambda number: float(np.float32(number) / np.float32(255))
  stub.errors[value(1)] = caused(UserError, "too bright")
  assert run(tmp_path / "in", tmp_path / "out") == 2
  assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0.png", "2.png", "3.png"]
  one, summary = capsys.readouterr().err.splitlines()
  assert one == f"infer.py: error: {tmp_path / 'in' / '1.png'}: too bright"
  assert summary == "infer.py: 3 restored, 1 could not be"
  stub.errors[value(0)] = caused(ValueError, "shapes")
  assert run(tmp_path / "in", tmp_path / "out", "--existing", "redo") == 1
  err = capsys.readouterr().err
  assert "ValueError: shapes" in err and "too bright" in err and "2 restored, 2 could not be" in err.splitlines()[-1]


def test_a_folder_is_restored_from_python(stub, tmp_path):
  for number in range(3):
    save(tmp_path / "in" / "below", f"{number}.png", number)
  stub.errors[0] = ValueError("shapes")

  class Told(Report):
    def __init__(self):
      self.lines = []

    def begin(self, jobs, number, count):
      self.lines.append(f"{number}/{count} {[job.name for job in jobs]}")

    def step(self, done, steps):
      self.lines.append(f"{done}/{steps}")

    def end(self, job, error):
      self.lines.append(error)

  told, steps = Told(), stub.manifest.sampling.steps
  summary = restore_folder(stub, tmp_path / "in", str(tmp_path / "out"), scale=2, report=told)
  assert [job.target for job in summary.restored] == [tmp_path / "out" / "below" / f"{n}.png" for n in (1, 2)]
  assert [(job.name, error) for job, error in summary.failed] == [("0.png", stub.errors[0])]
  assert told.lines[:3] == ["1/3 ['0.png']", f"0/{steps}", stub.errors[0]] and told.lines[-1] is None
  stub.errors.clear()
  assert [job.name for job in restore_folder(stub, tmp_path / "in", tmp_path / "out", scale=2).restored] == ["0.png"]


# Recipes


@pytest.mark.parametrize(
  "program, message",
  [
    ("import nowhere_to_be_found\n", "1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ("def get_config():\n  return {}['steps']\n", "2: KeyError: 'steps'"),
    ("def get_config():\n\n  return len(5)\n", "3: TypeError: object of type 'int' has no len()"),
    ("def get_config():\n  return None.steps\n", "2: AttributeError: 'NoneType' object has no attribute 'steps'"),
    ("x = 1\ndef get_config(\n", "2: SyntaxError: '(' was never closed"),
    ("import sys\nsys.exit('enough')\n", "2: SystemExit: enough"),
    ("import pathlib\npathlib.Path('nowhere').read_text()\n", "2: FileNotFoundError: "),
    ("def get_config():\n  assert False\n", "2: AssertionError: AssertionError"),
    (
      "from stablesr_jax import SamplingConfig\ndef get_config():\n  return SamplingConfig(steps=0)\n",
      "3: steps 0: must be ",
    ),
    ("get = 1\n", " has no get_config()"),
    ("get_config = lambda: 1\n", " get_config() must return a TrainConfig, not int"),
    ("async def get_config():\n  pass\n", " get_config() must return a TrainConfig, not coroutine"),
  ],
)
def test_a_recipe_that_fails_is_told_with_its_line(tmp_path, capsys, monkeypatch, program, message):
  monkeypatch.delenv("STABLESR_TRACEBACK", raising=False)
  path = tmp_path / "recipe.py"
  path.write_text(program)
  assert code_of(train.main, "--config", path, "--workdir", tmp_path) == 2
  err = capsys.readouterr().err
  assert err.startswith(f"train.py: error: {path}:{message}") and err.count("\n") == 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--config", ""], "must not be empty"),
    (["--config="], "must not be empty"),
    (["--config", "tiny_prior", "--workdir", "x", "--config=tiny_prior"], "is given twice"),
    (["--workdir", "x", "--config"], "name a file of configs/, say configs/stablesr_512.py"),
  ],
)
def test_a_wrong_config_flag(capsys, arguments, message):
  assert code_of(train.main, *arguments) == 2
  assert capsys.readouterr().err == f"train.py: error: --config: {message}\n"


# Surroundings


@pytest.fixture
def cache_settings():
  names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
  before, show = {name: getattr(jax.config, name) for name in names}, warnings.showwarning
  yield
  warnings.showwarning = show
  for name, value in before.items():
    jax.config.update(name, value)


def test_without_a_home_there_is_no_compile_cache(monkeypatch, cache_settings):
  def no_home(_):
    raise RuntimeError("could not determine the home directory")

  monkeypatch.setattr(compilation.platformdirs, "user_cache_dir", no_home)
  before, told = jax.config.jax_compilation_cache_dir, []
  compilation.enable_cache("auto", told.append)
  [line] = told
  assert "could not determine the home directory" in line
  assert jax.config.jax_compilation_cache_dir == before


def test_a_cache_that_cannot_be_made_is_told(tmp_path, cache_settings):
  (tmp_path / "file").write_text("")
  before, told = jax.config.jax_compilation_cache_dir, []
  compilation.enable_cache(str(tmp_path / "file" / "cache"), told.append)
  [line] = told
  assert line.startswith(f"compile cache {tmp_path / 'file' / 'cache'}: cannot be written (Not a directory)")
  assert jax.config.jax_compilation_cache_dir == before


def test_a_cache_that_cannot_be_written_is_still_read(tmp_path, cache_settings, monkeypatch):
  def read_only(**_):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(compilation.tempfile, "TemporaryFile", read_only)
  told = []
  compilation.enable_cache(str(tmp_path), told.append)
  assert len(told) == 1 and "Read-only file system" in told[0]
  assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  assert jax.config.jax_persistent_cache_min_compile_time_secs == np.inf


def test_a_cache_that_fills_up_is_told_once(tmp_path, cache_settings):
  told, others = [], []
  warnings.showwarning = lambda message, *_, **__: others.append(str(message))
  compilation.enable_cache(str(tmp_path), told.append)
  with warnings.catch_warnings():  # what shows warnings is put back, too
    warnings.simplefilter("always")
    for name in ("jit_a", "jit_b"):
      warnings.warn(f"Error writing persistent compilation cache entry for '{name}': OSError: No space", stacklevel=1)
    warnings.warn("another", stacklevel=1)
  assert told == [f"compile cache {tmp_path}: cannot be written (OSError: No space)"] and others == ["another"]


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'nonsense'")])
def test_a_platform_that_is_not_there_is_told_with_its_setting(monkeypatch, error):
  def devices():
    raise error

  monkeypatch.setattr(jax, "devices", devices)
  monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
  with pytest.raises(UserError, match="JAX_PLATFORMS=nonsense: JAX finds no such device here"):
    parallel.start_devices()


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("host:1", 2, None), "give all three or none"),
    (("host", 2, 0), "coordinator host: must be HOST:PORT"),
    (("host:1", 2, 2), "process 2: must be 0 to processes - 1"),
    (("host:1", -1, 0), "processes -1: must be at least 1"),
  ],
)
def test_processes_that_cannot_meet(arguments, message):
  with pytest.raises(UserError, match=message):
    parallel.connect(*arguments)


def test_a_workdir_that_is_a_file(tmp_path, capsys):
  (tmp_path / "file").write_text("")
  assert code_of(train.main, "--config", "tiny_prior", "--workdir", tmp_path / "file") == 2
  assert capsys.readouterr().err == f"train.py: error: {tmp_path / 'file'}: is a file, not a folder\n"
