"""A CLIP tokenizer made from the words of some captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MOST_WORDS = 2000
"""Words that get a token of their own; rarer ones are spelled. More take minutes to merge."""


def words_of(captions: Iterable[str], most: int = MOST_WORDS) -> list[str]:
    """Return the words of captions, in lower case: at most `most`, the most frequent ones, sorted."""
    counts = Counter(word for caption in captions for word in re.findall(r"[^\W\d_]+", caption.lower()))
    return sorted(sorted(counts, key=lambda word: (-counts[word], word))[:most])


def build_tokenizer(words: Iterable[str], max_tokens: int) -> CLIPTokenizer:
    """Build a CLIP tokenizer to which each of `words` (lower-case letters) is one token.

    As in CLIP's own vocabulary, the first 512 tokens are the bytes inside and at the end of a word, so that any text
    has tokens: an unknown word is spelled. The special tokens come last, the end of text with the highest id.
    `max_tokens`: of the longest text.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [symbol + "</w>" for symbol in alphabet]
    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = [to_bytes.pre_tokenize_str(word)[0][0] for word in sorted(set(words))]
    spelled = [(*word[:-1], word[-1] + "</w>") for word in symbols]
    merges = []
    while pairs := Counter(pair for word in spelled for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        tokens.append("".join(best))
        spelled = [_merge(word, best) for word in spelled]
    vocab = {token: number for number, token in enumerate([*tokens, START, END])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Replace every occurrence of `pair` in a spelled word by its join, from left to right."""
    result: list[str] = []
    for symbol in word:
        if result and (result[-1], symbol) == pair:
            result[-1] += symbol
        else:
            result.append(symbol)
    return tuple(result)
