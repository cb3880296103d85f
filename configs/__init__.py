"""Recipes of training runs, one a file, each whole in itself; installed as `stablesr_jax.recipes`."""
