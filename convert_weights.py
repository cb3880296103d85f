#!/usr/bin/env python
"""Converts published PyTorch weights into one model folder, and back. See `python convert_weights.py --help`."""

import sys

from stablesr_jax.cli import start

if __name__ == "__main__":
  sys.exit(start("convert", "convert_weights.py"))
