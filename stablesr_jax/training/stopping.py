"""Stopping cleanly: on Ctrl-C, and when the machine is about to be taken away."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from stablesr_jax.interrupts import end_now, interrupt


class StopRequest:
  """Tells the loop that SIGTERM or Ctrl-C came. With several processes they agree on the step to stop after.

  Before the first step there is nothing to save, and both raise KeyboardInterrupt; a second Ctrl-C always ends the
  program at once. A context manager, for the main thread; on leaving, the signals are handled as before.
  """

  def __init__(self):
    self._came = self._interrupted = self._stepped = False
    self._before: dict[signal.Signals, Any] = {}

  def __enter__(self) -> "StopRequest":
    if threading.current_thread() is threading.main_thread():  # Python has the others take no signals
      self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
      if jax.process_count() == 1:  # With several, JAX's own service takes it.
        self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    for number, handler in self._before.items():
      if number != signal.SIGINT or kind is not KeyboardInterrupt:  # else the next one ends the program
        signal.signal(number, handler)

  def _note(self, number: int, frame: FrameType | None) -> None:
    if not self._stepped:
      interrupt(number, frame)
    self._came = True

  def _interrupt(self, number: int, frame: FrameType | None) -> None:
    if not self._stepped:
      interrupt(number, frame)
      return
    if self._interrupted:
      end_now()
    self._interrupted = True
    os.write(2, b"\nstopping after this step; Ctrl-C again ends at once\n")  # `print` may be what was interrupted
    if jax.process_count() == 1:
      self._came = True
    else:
      os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the other processes

  def after(self, step: int) -> bool:
    """Whether to stop after this step; every process asks after every step."""
    self._stepped = True
    return self._came if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)

  def raise_interrupted(self) -> None:
    """
    Raises:
      KeyboardInterrupt: Ctrl-C came. For whoever has stopped because of it, and saved what there was to save.
    """
    if self._interrupted:
      raise KeyboardInterrupt
