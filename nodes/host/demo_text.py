"""A stand-in text encoder for the demo, behind the host's own CLIP class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.sd
import torch
from torch import Tensor, nn

from ...memory.training.words import embed_words, pooled_words, split_words

Token = tuple[str, float] | tuple[str, float, int]
"""A word and its weight, and its number where the host asks for one."""


class DemoTokenizer:
    """Splits a prompt into lower-case words; the words themselves are the tokens."""

    def __init__(self, embedding_directory: object = None, tokenizer_data: object = None) -> None:
        """The host passes where embeddings lie; words need none."""

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: object
    ) -> dict[str, list[list[Token]]]:
        """One list of (word, weight) under the key "words", with a third word id where the host asks for it."""
        words = split_words(text)
        if return_word_ids:
            return {"words": [[(word, 1.0, index + 1) for index, word in enumerate(words)]]}
        return {"words": [[(word, 1.0) for word in words]]}

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: there is nothing to save."""
        return {}


class DemoTextModel(nn.Module):
    """Looks every word up in a fixed table of random vectors.

    It understands nothing: each word is a seeded Gaussian vector with a little of its position added, the same on
    every machine. A model trained with it knows the words it was trained with, and no others. It needs no download.
    """

    dtypes = (torch.float32,)

    def __init__(self, device: object = None, dtype: object = None, model_options: object = None) -> None:
        """The host passes where and how to make weights; there are none to make."""
        super().__init__()
        self.device = device
        self.execution_device: Any = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        """Keep the device that the host encodes on; layers and projections do not exist here."""
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        """Forget the device of the last run."""
        self.execution_device = None

    def encode_token_weights(self, tokens: dict[str, list[list[Token]]]) -> tuple[Tensor, Tensor]:
        """The prompt as `[1, L, 4096]`, L = 1 + words, and as one vector `[1, 768]`, which only HunyuanVideo reads; float32."""
        vectors = embed_words([token[0] for token in tokens["words"][0]])
        pooled = pooled_words(vectors, torch.tensor([[vectors.shape[1]]]))
        device = self.execution_device or "cpu"
        return vectors.to(device), pooled.to(device)

    def load_sd(self, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        """Nothing to load: no missing keys, every given key unexpected."""
        return [], list(state)


def build_demo_clip() -> comfy.sd.CLIP:
    """The demo text encoder as a host CLIP: works with CLIP Text Encode and every node that tokenizes and encodes."""
    target = SimpleNamespace(params={}, clip=DemoTextModel, tokenizer=DemoTokenizer)
    return comfy.sd.CLIP(target)
