#!/usr/bin/env python
"""Trains a stage of StableSR. See `python train.py --help`."""

import sys

from stablesr_jax.cli.train import main

if __name__ == "__main__":  # the data pipeline's worker processes import this file
  sys.exit(main())
