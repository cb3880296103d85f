"""Ctrl-C: the first one stops the program in good order, a second one at once."""

import _weakrefset
import atexit
import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # the exit code; what shells use for Ctrl-C


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
  """Takes Ctrl-C in the block as `interrupt` does. Where the block ends by it, the next one ends the program at once.

  Only the main thread takes signals; in others nothing changes.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  atexit.register(_keep_code)  # first of all, so that it is the last to be called
  before = signal.signal(signal.SIGINT, interrupt)
  try:
    yield
  except KeyboardInterrupt:
    signal.signal(signal.SIGINT, end_now)
    raise
  finally:
    if signal.getsignal(signal.SIGINT) is not end_now:
      signal.signal(signal.SIGINT, before)


def interrupt(_: int, frame: FrameType | None) -> None:
  """Handles a signal: raises KeyboardInterrupt, and sees to it that the next one ends the program at once.

  Python drops what is raised in a callback of its garbage collector (JAX has one), or while an object is finalised:
  it waits until that is over.
  """
  if _is_dropped(frame):
    # A signal again, which ends a wait for the system, too.
    threading.Timer(0.02, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    return
  signal.signal(signal.SIGINT, end_now)
  raise KeyboardInterrupt


def end_now(*_: object) -> NoReturn:
  """Handles a signal: ends the program without another word, and its data workers. Nothing is cleaned up."""
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(INTERRUPTED)


def _keep_code() -> None:
  """Of a program that was stopped, and is all but over: as it ends, Python lets Ctrl-C kill it, with another code."""
  if signal.getsignal(signal.SIGINT) is end_now:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _is_dropped(frame: FrameType | None) -> bool:
  """Whether an error that is raised in this frame gets no further than a callback that it is called from."""
  callbacks = [getattr(callback, "__code__", None) for callback in gc.callbacks]
  while frame is not None:
    code = frame.f_code
    # The callbacks of weak references are those of Python's own containers of them.
    if code in callbacks or code.co_name == "__del__" or code.co_filename in (weakref.__file__, _weakrefset.__file__):
      return True
    frame = frame.f_back
  return False
