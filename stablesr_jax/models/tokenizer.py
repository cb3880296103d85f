"""CLIP's byte-pair tokenizer as OpenCLIP applies it, from the vocabulary shipped with the package."""

import functools
import gzip
import html
import importlib.resources
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stablesr_jax.errors import UserError

if TYPE_CHECKING:
  from transformers import CLIPTokenizer

START, END = "<start_of_text>", "<end_of_text>"
_MERGES = 49152 - 256 - 2  # the vocabulary holds 49152 entries, less the bytes and the two tokens above

# OpenCLIP mends text with ftfy. Of what ftfy does, this keeps what concerns prompts: straight quotation marks.
_QUOTES = str.maketrans({**dict.fromkeys("ʼ‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')})


def tokenize(prompts: Sequence[str], context_length: int = 77) -> np.ndarray:
  """Token ids of prompts: start, text, end, then zeros. A text that is too long is cut, and still ends with end.

  Args:
    prompts: The N texts; case, runs of white space and HTML escapes do not matter. "" is the null prompt.
    context_length: The number of ids for each prompt, at least 2.

  Returns:
    (N, context_length) int32, values in [0, 49408).

  Raises:
    UserError: `prompts` is a single string, or `context_length` is less than 2.
  """
  if isinstance(prompts, str):
    raise UserError(f"prompts: expected a list of texts, found the text {prompts!r}")
  if context_length < 2:
    raise UserError(f"context_length {context_length}: must be at least 2")
  tokens = np.zeros((len(prompts), context_length), np.int32)
  if len(prompts):
    encoded = _tokenizer()([_clean(prompt) for prompt in prompts], truncation=True, max_length=context_length)
    for row, ids in zip(tokens, encoded["input_ids"], strict=True):
      row[: len(ids)] = ids
  return tokens


def _clean(text: str) -> str:
  text = html.unescape(html.unescape(text.translate(_QUOTES)))
  return " ".join(unicodedata.normalize("NFC", text).split()).lower()


@functools.cache
def _tokenizer() -> "CLIPTokenizer":
  from transformers import CLIPTokenizer  # Late: importing transformers takes a second.

  asset = importlib.resources.files("stablesr_jax") / "assets" / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
  lines = gzip.decompress(asset.read_bytes()).decode("utf-8").split("\n")
  merges: list = [tuple(line.split()) for line in lines[1 : 1 + _MERGES]]  # the first line is a version
  characters = _byte_characters()
  words = [*characters, *(c + "</w>" for c in characters), *("".join(pair) for pair in merges), START, END]
  return CLIPTokenizer(
    vocab={word: i for i, word in enumerate(words)},
    merges=merges,
    unk_token=END,
    bos_token=START,
    eos_token=END,
    pad_token=END,
  )


def _byte_characters() -> list[str]:
  """The character that stands for each byte in the vocabulary, in the vocabulary's order: printable bytes first."""
  printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
