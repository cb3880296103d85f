"""Measures what this code does on a new device, a GPU or a TPU, in about eight minutes of its time.

    python -m benchmarks.accelerator --output FOLDER              from the repository's root; no weights, data, network
    python -m benchmarks.accelerator --sections step peak         some sections (--plan lists them, and starts nothing)
    python -m benchmarks.accelerator --compile --budget 240       only to fill the compile cache; a later run finds it
    python -m benchmarks.accelerator --tiny                       sizes for a CPU, to try the script itself

Each section is a process of its own with a time limit, so that a crash or a hang ends that section alone. Every number
is a line of JSON on standard output, and in FOLDER/rows.jsonl, as soon as it is known; what else the processes say goes
to FOLDER/logs (without --output, to standard error).

There are two passes. The first compiles all programs into the persistent cache, --parallel processes at a time: each of
them uses several cores (15 at once on 16 cores made every program take over 130 s, where one alone takes 22 s), and XLA
tries its kernels on a device that others use, too, so that now and then it keeps a slower one. The second measures, one
process after the other. When --budget is short the first gives way. A TPU belongs to one process at a time, so there
the first pass is one by one as well.

Left out, with a line that says so: PyTorch where it does not see the device, diffusers and pytest where they are not
installed. Pictures and networks are random, but for the embedded model's.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any

from benchmarks.accelerator.plan import LEAST_SECONDS, SECTIONS, Job, describe, make_plan

ROOT = pathlib.Path(__file__).parents[2]


def command(job: Job, options: list[str]) -> list[str]:
  """What starts a job's process."""
  passes = ["--compile"] if job.compiling else []
  cases = ["--cases", *job.cases] if job.cases else []
  return [sys.executable, "-m", "benchmarks.accelerator.sections", job.section.name, *cases, *passes, *options]


class Runner:
  """Starts processes, passes their lines on, and ends them in time.

  Attributes:
    rows: The lines of the timings so far.
    failed: Whether a timing's process ended with an error or at its limit.
  """

  def __init__(self, output: pathlib.Path | None, seconds: float, options: list[str]):
    self.rows: list[dict] = []
    self.failed = False
    self._output, self._options = output, options
    self._end = time.monotonic() + seconds
    self._lock, self._running, self._stopped = threading.Lock(), set(), False
    if output is not None:
      (output / "logs").mkdir(parents=True, exist_ok=True)
      (output / "rows.jsonl").unlink(missing_ok=True)

  def left(self) -> float:
    """Seconds until everything must be over."""
    return 0.0 if self._stopped else self._end - time.monotonic()

  def tell(self, line: str) -> None:
    """Writes a line, everywhere. What is no JSON comes from a library and is only shown."""
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      row = None
    with self._lock:
      print(line, flush=True, file=sys.stdout if isinstance(row, dict) else sys.stderr)
      if isinstance(row, dict):
        self.rows.append(row)
        if self._output is not None:
          with open(self._output / "rows.jsonl", "a") as file:
            file.write(line + "\n")

  def run(self, job: Job, limit: float) -> None:
    """Runs one job to its end, or to `limit` seconds."""
    about: dict[str, Any] = {"section": job.section.name, "pass": "compile" if job.compiling else "time"}
    if job.compiling:
      about["cases"] = list(job.cases)
    if limit < LEAST_SECONDS:
      return self.tell(json.dumps(about | {"what": "left out", "why": "no time left"}))
    options = [*self._options, "--limit", f"{limit:.1f}"]
    peaks = [row["tflops"] for row in self.rows if row.get("what") == "JAX, bfloat16 product"]
    options += ["--peak", str(peaks[-1])] if peaks and job.section.name == "step" else []
    environment = os.environ | {
      "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
      "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share the device in the compile pass
    }
    began = time.monotonic()
    log = None if self._output is None else open(self._output / "logs" / f"{job.name.replace(' ', '_')}.txt", "w")
    try:
      process = subprocess.Popen(
        command(job, options), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True,
        start_new_session=True,
      )  # fmt: skip
      self._running.add(process)
      if self._stopped:  # meanwhile
        self._kill(process)
      reader = threading.Thread(target=self._pass_on, args=(process.stdout,))
      reader.start()
      try:
        status: int | str = process.wait(limit)
      except subprocess.TimeoutExpired:
        status = "time limit"
      self._kill(process)  # and what it started itself
      reader.join()
    finally:
      if log is not None:
        log.close()
    if not job.compiling:
      self.failed |= status != 0
    seconds = round(time.monotonic() - began, 1)
    self.tell(json.dumps(about | {"what": "ended", "status": status, "seconds": seconds, "limit": round(limit, 1)}))

  def stop(self) -> None:
    """Ends what is running; what has not begun does not begin."""
    self._stopped = True
    for process in list(self._running):
      self._kill(process)

  def _pass_on(self, lines: IO[str]) -> None:
    with lines:
      for line in lines:
        self.tell(line.rstrip("\n"))

  def _kill(self, process: subprocess.Popen) -> None:
    try:
      os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # nothing of it is left
      pass
    process.wait()
    self._running.discard(process)


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.accelerator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = [section.name for section in SECTIONS]
  parser.add_argument("--sections", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
  parser.add_argument("--output", type=pathlib.Path, metavar="FOLDER", help="for rows, logs, pictures and the trace")
  parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="in all (%(default)s)")
  parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="one pass alone; default: both")
  parser.add_argument("--parallel", type=int, metavar="N", help="processes in the compile pass (cores // 4)")
  parser.add_argument("--compile-cache", default="auto", help="auto, off or a folder, as for infer.py")
  parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to try this script")
  parser.add_argument("--plan", action="store_true", help="say what would be done, and do nothing")
  args = parser.parse_args(arguments)
  passes = False if args.compile_cache == "off" else args.compile
  plan = make_plan(args.sections, compile=passes, budget=args.budget, tiny=args.tiny)
  parallel = args.parallel or max(1, (os.cpu_count() or 1) // 4)
  if args.plan:
    print(describe(plan, args.budget, parallel))
    return 0
  output = None if args.output is None else args.output.resolve()
  options = ["--tiny"] if args.tiny else []
  options += ["--output", str(output)] if output is not None else []
  options += ["--compile-cache", args.compile_cache]
  runner = Runner(output, args.budget, options)
  try:
    for job in plan.first:
      runner.run(job, min(job.section.limit, runner.left()))
    if any(row.get("platform") == "tpu" for row in runner.rows):
      parallel = 1
    _compile(runner, plan.compiling, plan.compile_seconds, parallel)
    for job in plan.timing:
      runner.run(job, min(job.section.limit, runner.left()))
  finally:
    runner.stop()
  return int(runner.failed)


def _compile(runner: Runner, jobs: tuple[Job, ...], seconds: float, parallel: int) -> None:
  """The compile pass. What is not compiled when the time is over, the timings compile themselves."""
  end = time.monotonic() + seconds
  left = lambda: min(end - time.monotonic(), runner.left())
  with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
    try:
      for done in [pool.submit(lambda job=job: runner.run(job, left())) for job in jobs]:
        done.result()
    except BaseException:
      runner.stop()
      raise


if __name__ == "__main__":
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the sections' processes end, too
  sys.exit(main())
