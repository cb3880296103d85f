"""The tokenizer; its agreement with stored answers is in `parity/test_tokenizer.py`."""

import subprocess
import sys

import numpy as np
import pytest

from stablesr_jax.models.tokenizer import tokenize

START, END = 49406, 49407


def _ids(text):
  """The ids between start and end."""
  row = tokenize([text])[0]
  end = int(np.argmax(row == END))
  assert row[0] == START and not row[end + 1 :].any()
  return row[1:end].tolist()


def test_shape_dtype_and_padding():
  tokens = tokenize(["", "Bad photo."])
  assert tokens.shape == (2, 77) and tokens.dtype == np.int32
  assert tokens[0].tolist() == [START, END] + [0] * 75
  assert tokens[1].tolist() == [START, 2103, 1125, 269, END] + [0] * 72
  assert tokenize([]).shape == (0, 77)


@pytest.mark.parametrize("text", ["word " * 200, "a" * 1000, "🙂" * 100, ", ".join(map(str, range(500)))])
def test_long_prompts_are_cut_and_still_end(text):
  tokens = tokenize([text])[0]
  assert tokens[0] == START and tokens[76] == END and not np.isin(tokens[1:76], [0, START, END]).any()
  np.testing.assert_array_equal(tokenize([text], context_length=8)[0], [*tokens[:7], END])


def test_the_longest_prompt_that_fits_is_whole():
  assert tokenize(["word " * 75])[0, 1:].tolist() == _ids("word") * 75 + [END]


def test_unicode():
  assert _ids("漢字 🙂 naïve ĀΣ") == _ids("漢字   🙂\n\tNAÏVE\u00a0āς")
  assert _ids("cafe\u0301") == _ids("caf\u00e9") != _ids("cafe")  # composed
  assert _ids("½\x00\u200d")  # every byte has a token
  assert all(0 < i < START for i in _ids("漢字 🙂 ½ \x00 \u200d \ufeff"))


def test_text_is_cleaned_as_openclip_does():
  assert _ids("A &lt;b&gt; &amp;amp; c") == _ids("a <b> & c")
  assert _ids("it’s “fine”") == _ids('it\'s "fine"')
  assert _ids("  A  CAT  ") == _ids("a cat")


def test_digits_and_weights_are_literal_text():
  assert len(_ids("2024")) == 4
  assert len(_ids("(best quality:2)")) > len(_ids("best quality"))


def test_misuse_is_refused():
  with pytest.raises(ValueError, match="expected a list of texts, found the text 'a cat'"):
    tokenize("a cat")
  with pytest.raises(ValueError, match="context_length 1"):
    tokenize(["a"], context_length=1)


def test_import_is_light_and_needs_no_torch():
  code = (
    "import sys; sys.modules['torch'] = None\n"
    "from stablesr_jax.models.tokenizer import tokenize\n"
    "assert 'transformers' not in sys.modules\n"
    "print(tokenize(['Bad photo.'])[0, :5].tolist())"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
  assert done.stdout.strip() == "[49406, 2103, 1125, 269, 49407]", done.stderr
