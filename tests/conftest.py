"""Test-wide settings."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
  """Many tests compile the same networks; each is compiled once in a run."""
  jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  # Shapes that broadcast by adding axes in front are a common slip.
  jax.config.update("jax_numpy_rank_promotion", "raise")
