"""What is measured, in which order, and how the time is shared. Nothing here imports JAX."""

import dataclasses
from collections.abc import Sequence

# Below this a process would hardly have started its work, and a compile pass would be of no use.
LEAST_SECONDS, LEAST_COMPILE_SECONDS = 15.0, 30.0


@dataclasses.dataclass(frozen=True)
class Section:
  """A child process of its own.

  Attributes:
    answers: What it is there to say.
    seconds: What it should take where all programs are compiled; so much is kept for it.
    limit: The seconds after which it is ended.
    cases: What it goes through, the most wanted first; each of them is a process of its own in the compile pass.
    tiny_cases: The same with sizes for a CPU.
    compiles: Whether the compile pass has anything to do for it.
  """

  name: str
  answers: str
  seconds: float
  limit: float
  cases: tuple[str, ...] = ()
  tiny_cases: tuple[str, ...] = ()
  compiles: bool = True


# In the order of their use to somebody who has eight minutes. `device` says what the others ran on, `peak` what the
# steps are a share of.
SECTIONS = (
  Section("device", "versions, the device", 10, 40, compiles=False),
  Section("peak", "bfloat16 products and copies of memory", 15, 40, compiles=False),
  Section("step", "a denoising step, by tiles at once", 45, 120, ("8", "1", "16", "4", "32"), ("2",)),
  Section("diffusers", "PyTorch's UNet of Stable Diffusion, by tiles at once", 60, 120, ("8", "1"), ("1",)),
  Section("autoencoder", "encode, decode with CFW, by side", 25, 80, ("512", "1024", "4x512"), ("64", "2x64")),
  Section("end_to_end", "128x128 to 512x512, by pictures at once", 45, 120, ("1", "16"), ("1", "2")),
  Section("guidance", "classifier-free guidance", 15, 60, ("bfloat16", "float32"), ("bfloat16",)),
  Section("training", "a training step, by samples", 40, 120, ("8", "16", "24"), ("1",)),
  Section(
    "embedded",
    "the embedded model against examples/restored",
    25,
    80,
    ("bfloat16", "float32_highest", "float32_default"),
    ("float32_highest",),
  ),
  Section("degradation", "making LR images, by batch", 10, 60, ("8", "24"), ("1",)),
  Section("trace", "the slowest operations of a step", 15, 60, ("8",), ("2",), compiles=False),
  Section("parity", "published answers at small width", 40, 90, ("highest", "default"), ("highest",), compiles=False),
)


@dataclasses.dataclass(frozen=True)
class Job:
  """One child process: a section with its cases, compiling alone or timing."""

  section: Section
  cases: tuple[str, ...]
  compiling: bool = False

  @property
  def name(self) -> str:
    return " ".join((self.section.name, *self.cases)) if self.compiling else self.section.name


@dataclasses.dataclass(frozen=True)
class Plan:
  """The two passes.

  Attributes:
    first: What says on what all ran; it comes before both passes.
    compile_seconds: How long the compile pass may take in all.
  """

  first: tuple[Job, ...]
  compiling: tuple[Job, ...]
  timing: tuple[Job, ...]
  compile_seconds: float


def make_plan(wanted: Sequence[str] | None, *, compile: bool | None, budget: float, tiny: bool) -> Plan:
  """Shares out the time.

  Timings come first: the compile pass has what they leave of the budget, and is left out if that is little.

  Args:
    wanted: The names of sections; None is all.
    compile: True for the compile pass alone, False for timings alone, None for both.
    budget: Seconds in all.
  """
  sections = [section for section in SECTIONS if wanted is None or section.name in wanted]
  cases = lambda section: section.tiny_cases if tiny else section.cases
  jobs = [Job(section, cases(section)) for section in sections]
  timing = tuple(job for job in jobs if job.section.name != "device" and compile is not True)
  kept = sum(job.section.seconds for job in jobs if compile is not True)
  seconds = 0.0 if compile is False else budget - kept
  compiling = [
    Job(section, (case,), compiling=True) for section in sections if section.compiles for case in cases(section)
  ]
  if not compiling or seconds < LEAST_COMPILE_SECONDS:
    seconds, compiling = 0.0, []
  # On a TPU the compile pass is another one.
  first = tuple(Job(section, ()) for section in SECTIONS[:1] if section in sections or compiling)
  return Plan(first, tuple(compiling), timing, seconds)


def describe(plan: Plan, budget: float, parallel: int) -> str:
  """The plan in lines for people."""
  lines = [f"at most {budget:g} s in all"]
  if plan.compiling:
    lines.append(f"compile, {parallel} at a time, for at most {plan.compile_seconds:g} s:")
    lines += [f"  {job.name}" for job in plan.compiling]
  if plan.first or plan.timing:
    lines.append("measure, one by one (name, expected and longest seconds, what it answers):")
  for job in (*plan.first, *plan.timing):
    s, cases = job.section, f": {', '.join(job.cases)}" if job.cases else ""
    lines.append(f"  {s.name:12} {s.seconds:4g} {s.limit:4g}  {s.answers}{cases}")
  return "\n".join(lines)
