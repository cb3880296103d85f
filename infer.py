#!/usr/bin/env python
"""Restores photographs. See `python infer.py --help`."""

import sys

from stablesr_jax.cli import start

if __name__ == "__main__":
  sys.exit(start("infer", "infer.py"))
