"""Ctrl-C: it stops whatever the program is at, the second one at once."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref

import pytest

from stablesr_jax.cli.main import main
from stablesr_jax.interrupts import INTERRUPTED, end_now, interrupt, stoppable
from stablesr_jax.training.stopping import StopRequest


@pytest.fixture(autouse=True)
def handler():
  before = signal.getsignal(signal.SIGINT)
  yield before
  signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_the_garbage_collector_is_not_lost():
  def collecting(phase, _):
    if phase == "start":
      signal.raise_signal(signal.SIGINT)
      time.sleep(0)  # where Python calls the handler

  gc.callbacks.append(collecting)
  try:
    with pytest.raises(KeyboardInterrupt), stoppable():
      gc.collect()
      gc.callbacks.remove(collecting)
      time.sleep(10)
      pytest.fail("slept on")
  finally:
    if collecting in gc.callbacks:
      gc.callbacks.remove(collecting)
  assert signal.getsignal(signal.SIGINT) is end_now


def test_an_interrupt_as_a_weak_reference_ends_is_not_lost():
  class Key:
    def __hash__(self):
      return 1

  class Loud(dict):
    def __delitem__(self, key):  # what the callback of a WeakKeyDictionary calls
      signal.raise_signal(signal.SIGINT)
      time.sleep(0)
      super().__delitem__(key)

  keys, key = weakref.WeakKeyDictionary(), Key()
  keys.data = Loud()
  keys[key] = None
  with pytest.raises(KeyboardInterrupt), stoppable():
    del key
    time.sleep(10)
    pytest.fail("slept on")


def test_the_handler_is_put_back(handler):
  with stoppable():
    assert signal.getsignal(signal.SIGINT) is interrupt
  with pytest.raises(KeyError), stoppable():
    raise KeyError
  assert signal.getsignal(signal.SIGINT) is handler


PROGRAM = """
import signal, sys, threading, time
from stablesr_jax.interrupts import stoppable
thread = threading.Thread(target=time.sleep, args=(20,))
thread.start()
try:
  with stoppable():
    print("ready", flush=True)
    time.sleep(20)
except KeyboardInterrupt:
  print("stopped", flush=True)
sys.exit(130)
"""


def test_a_second_one_ends_the_program_while_it_waits_for_threads():
  program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  assert program.stdout is not None
  assert program.stdout.readline() == "ready\n"
  program.send_signal(signal.SIGINT)
  assert program.stdout.readline() == "stopped\n"
  program.send_signal(signal.SIGINT)
  began = time.monotonic()
  assert program.communicate()[1] == ""
  assert program.returncode == INTERRUPTED and time.monotonic() - began < 10


def test_training_is_told_to_stop_after_the_step(handler, capfd):
  with StopRequest() as stop:
    assert not stop.after(1)
    signal.raise_signal(signal.SIGINT)
    assert stop.after(2)
  assert signal.getsignal(signal.SIGINT) is handler
  assert capfd.readouterr().err == "\nstopping after this step; Ctrl-C again ends at once\n"
  with pytest.raises(KeyboardInterrupt):
    stop.raise_interrupted()


def test_sigterm_is_no_interrupt():
  with StopRequest() as stop:
    assert not stop.after(1)
    signal.raise_signal(signal.SIGTERM)
    assert stop.after(2)
  stop.raise_interrupted()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_step_training_ends(number):
  with pytest.raises(KeyboardInterrupt), StopRequest():
    signal.raise_signal(number)
  assert signal.getsignal(signal.SIGINT) is end_now


def test_a_second_one_ends_training_at_once(monkeypatch):
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  with StopRequest() as stop:
    stop.after(1)
    signal.raise_signal(signal.SIGINT)
    assert codes == []
    signal.raise_signal(signal.SIGINT)
  assert codes == [INTERRUPTED]


def test_ctrl_c_while_a_command_is_imported(monkeypatch, capsys):
  def interrupted(_):
    signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr("importlib.import_module", interrupted)
  assert main(["infer"]) == INTERRUPTED
  assert capsys.readouterr().err == "stablesr infer: stopped\n"
