"""Test-wide settings."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory, worker_id):
  """Many tests compile the same networks; each is compiled once in a run, whichever process needs it first."""
  base = tmp_path_factory.getbasetemp()
  run = base if worker_id == "master" else base.parent  # pytest-xdist gives each process a folder in the run's
  jax.config.update("jax_compilation_cache_dir", str(run / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  # Shapes that broadcast by adding axes in front are a common slip.
  jax.config.update("jax_numpy_rank_promotion", "raise")
