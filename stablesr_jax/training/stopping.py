"""Stopping cleanly when the machine is about to be taken away."""

import signal
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopRequest:
  """Tells the loop that SIGTERM came. With several processes they agree on the step to stop after.

  A context manager; on leaving, the signal is handled as before.
  """

  def __init__(self):
    self._came = False
    self._before: Callable[[int, FrameType | None], object] | int | None = None

  def __enter__(self) -> "StopRequest":
    if jax.process_count() == 1:
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self  # With several, JAX's own service takes the signal.

  def __exit__(self, *_: object) -> None:
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, *_: object) -> None:
    self._came = True

  def after(self, step: int) -> bool:
    """Whether to stop after this step; every process asks after every step."""
    return self._came if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
