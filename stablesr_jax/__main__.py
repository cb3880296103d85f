"""`python -m stablesr_jax`: the command `stablesr` where it is not installed."""

import sys

from stablesr_jax.cli.main import main

if __name__ == "__main__":  # the data pipeline's worker processes import this file
  sys.exit(main(prog="python -m stablesr_jax"))
