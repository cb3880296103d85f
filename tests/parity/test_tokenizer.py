"""Tokens of the published implementation's prompts."""

import os
import pathlib

import numpy as np
import pytest

from stablesr_jax.models.tokenizer import tokenize

_DEFAULT = pathlib.Path(__file__).parents[1] / "reference"
REFERENCE = pathlib.Path(os.environ.get("STABLESR_REFERENCE", _DEFAULT))


def test_tokens_equal_the_answers():
  path = REFERENCE / "full_text.npz"
  if not path.exists():
    pytest.skip(f"no {path}")
  with np.load(path) as answers:
    prompts, tokens = answers["prompts"].tolist(), answers["tokens"]
  np.testing.assert_array_equal(tokenize(prompts, context_length=tokens.shape[1]), tokens)
