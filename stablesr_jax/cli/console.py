"""What `infer.py` tells while it restores."""

from collections.abc import Sequence

from tqdm import tqdm

from stablesr_jax.cli.common import shown, tell, warn
from stablesr_jax.inference.jobs import Report
from stablesr_jax.inference.plan import Job

OUT_OF_MEMORY = "try a smaller --tile-batch or --autoencoder-tile"


class Console(Report):
  """A bar for pictures that are restored together, the results' names on standard output, errors on standard error.

  Attributes:
    exit_code: The gravest so far: a bug's before that of what a person can mend.
    restored: The number of pictures that are written.
  """

  def __init__(self, prog: str, quiet: bool = False):
    self.exit_code = self.restored = 0
    self.prog = prog
    self._quiet = quiet
    self._bar: tqdm | None = None
    self._label = ""

  def begin(self, jobs: Sequence[Job], number: int, count: int) -> None:
    last = f"-{number + len(jobs) - 1}" if len(jobs) > 1 else ""
    self._label = f"[{number}{last}/{count}] {shown(jobs[0].source.name)}{' ...' if last else ''}"

  def step(self, done: int, steps: int) -> None:
    if self._bar is None:
      self._bar = tqdm(total=steps, desc=self._label, unit="step", disable=None)
    self._bar.update(done - self._bar.n)
    if done == steps:
      self._close()

  def note(self, job: Job, note: str) -> None:
    with tqdm.external_write_mode():
      warn(self.prog, f"{shown(job.source)}: {note}")

  def remark(self, remark: str) -> None:
    with tqdm.external_write_mode():
      warn(self.prog, remark)

  def end(self, job: Job, error: Exception | None) -> None:
    with tqdm.external_write_mode():  # a bar may be on the screen
      if error is None:
        self.restored += 1
        if not self._quiet:
          print(shown(job.target), flush=True)
        return
      self._tell(job, error)

  def _close(self) -> None:
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  def _tell(self, job: Job, error: Exception) -> None:
    self._close()  # it may have been this picture's
    code = tell(self.prog, error, subject=str(job.source), out_of_memory=OUT_OF_MEMORY)
    self.exit_code = min(code, self.exit_code or code)
