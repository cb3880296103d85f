"""Settings and fixtures of all tests."""

import os
import pathlib

import pytest

# Where the shapes and dtypes in signatures are checked at every call.
_CHECKED = ("models", "diffusion", "inference", "pixels")
# Of the training tests, what takes over five minutes: begun first, lest one process waits for it at the end.
_LONGEST = ("test_learning.py", "test_training_runs.py")


def pytest_configure(config):
  """Before the first test file imports JAX.

  Nearly all of the default run's time is the compilation of programs that then run once: it takes half as long without
  LLVM's optimisation. Full-size networks compute long enough to want it.
  """
  if config.option.markexpr != "full":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
  from jaxtyping import install_import_hook

  from tests import checking

  install_import_hook([f"stablesr_jax.{name}" for name in _CHECKED], f"{checking.__name__}.check")


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(scope="session", autouse=True)
def compile_cache(request, tmp_path_factory) -> pathlib.Path:
  """Many tests compile the same networks; each is compiled once in a run, whichever process needs it first."""
  import jax  # after pytest_configure

  base = tmp_path_factory.getbasetemp()
  # pytest-xdist gives each of its processes a folder in the run's.
  run = base.parent if hasattr(request.config, "workerinput") else base
  jax.config.update("jax_compilation_cache_dir", str(run / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  # Shapes that broadcast by adding axes in front are a common slip.
  jax.config.update("jax_numpy_rank_promotion", "raise")
  return run / "compiled"


@pytest.fixture(scope="module")
def place(tmp_path_factory, compile_cache):
  """A folder of its own for a file's runs of train.py."""
  from tests.training_place import make_place

  return make_place(tmp_path_factory.mktemp("training"), compile_cache)


@pytest.fixture
def compiled() -> list[str]:
  """Has one item for each program that XLA has compiled since the test began."""
  import jax

  programs = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: programs.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
  )
  return programs


@pytest.fixture(scope="session")
def model():
  """The micro model, loaded; what its tests compiled is kept."""
  from tests import micro

  return micro.restorer(tile_batch=4)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> pathlib.Path:
  """The micro model in the converted format."""
  from tests import micro

  return micro.write(tmp_path_factory.mktemp("models") / "micro")
