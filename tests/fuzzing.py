"""Files that are damaged at random."""

import os
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# By default a fuzz test takes seconds.
MINUTES = float(os.environ.get("STABLESR_FUZZ_MINUTES", 0))


def run(seeds: list[bytes], try_file: Callable[[bytes], bool], examples: int) -> None:
  """Calls `try_file`, which asserts what holds for any bytes and says whether they were read, with damaged copies of
  files: up to eight changed bytes, an end cut off, some bytes behind it.

  Damage alone would say little: some must have been read, and some not.
  """
  read = []

  @settings(
    max_examples=max(examples, int(MINUTES * 60 * 400)),
    deadline=None,
    database=None,
    derandomize=not MINUTES,
    suppress_health_check=list(HealthCheck),
  )
  @given(
    st.sampled_from(seeds),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    st.one_of(st.none(), st.floats(0, 1)),
    st.binary(max_size=32),
  )
  def damage(data, flips, cut, tail):
    changed = bytearray(data)
    for place, value in flips:
      changed[int(place * (len(changed) - 1))] = value
    if cut is not None:
      changed = changed[: int(cut * len(changed))]
    read.append(try_file(bytes(changed) + tail))

  damage()
  print(f"{len(read)} files, {sum(read)} of them read")
  assert 0 < sum(read) < len(read)
