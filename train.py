#!/usr/bin/env python
"""Trains a stage of StableSR. See `python train.py --help`."""

import sys

from stablesr_jax.cli import start

if __name__ == "__main__":  # the data pipeline's worker processes import this file
  sys.exit(start("train", "train.py"))
