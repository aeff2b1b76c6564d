"""Words as vectors: the demo text encoder's table, shared by training and by the node behind the CLIP socket."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import torch
from torch import Tensor

TEXT_WIDTH = 4096
"""Width that every Wan text projection expects."""
POOLED_WIDTH = 768
"""Width of the one vector that HunyuanVideo takes for a whole prompt."""
MAX_WORDS = 512
"""Longest prompt that Wan models were trained with."""
START_WORD = "<start>"
POSITION_SCALE = 0.2
"""Word order counts, but a word stays nearest to itself wherever it stands."""
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers of `text`, in order; punctuation separates and is dropped."""
    return _WORD.findall(text.lower())


@lru_cache(maxsize=4096)
def _gaussian(key: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "little") >> 1
    return torch.randn(TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))


def word_vector(word: str, position: int) -> Tensor:
    """The vector of `word` as the `position`-th of a prompt: `[4096]`, float32, unit variance per number."""
    vector = _gaussian(f"word {word}") + POSITION_SCALE * _gaussian(f"position {position}")
    unit: Tensor = vector / (1.0 + POSITION_SCALE**2) ** 0.5
    return unit


def embed_words(words: list[str]) -> Tensor:
    """The prompt as `[1, L, 4096]`, float32, with L = 1 + number of words; the same words give the same bits."""
    kept = [START_WORD, *words][:MAX_WORDS]
    return torch.stack([word_vector(word, position) for position, word in enumerate(kept)]).unsqueeze(0)


def embed_text(text: str) -> Tensor:
    """`text` split into words and embedded: `[1, L, 4096]`, float32."""
    return embed_words(split_words(text))


def pooled_words(vectors: Tensor, counts: Tensor) -> Tensor:
    """One vector `[B, 768]` for each prompt of `[B, L, 4096]`, zero-padded to L from `counts` `[B, 1]` words."""
    return vectors[..., :POOLED_WIDTH].sum(1) / counts
