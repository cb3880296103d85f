#!/usr/bin/env python
"""Restores photographs. See `python infer.py --help`."""

import sys

from stablesr_jax.cli.infer import main

if __name__ == "__main__":
  sys.exit(main())
