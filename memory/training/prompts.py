"""Prompts as a model reads them: of the tiny one from its table of words, of a large one made once by its text encoder and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ..whole_file import explained, whole_file
from .words import embed_text, split_words

PROMPTS = "prompts"
_WORDS, _COUNT = "words", "count"


class Prompts(Protocol):
    """Turns prompts into words of a model's text; `encoder` names the weights that do, and is empty for the tiny model's table."""

    @property
    def encoder(self) -> str:
        """See above."""
        ...

    def count(self, prompt: str) -> int:
        """How many words the model reads."""
        ...

    def words(self, prompt: str) -> Tensor:
        """Those words, embedded `[W, 4096]`."""
        ...


class TinyPrompts:
    """Words of the tiny model, from its table."""

    encoder = ""

    def count(self, prompt: str) -> int:
        """See `Prompts`."""
        return len(split_words(prompt)) + 1

    def words(self, prompt: str) -> Tensor:
        """See `Prompts`."""
        return embed_text(prompt)[0]


class KeptPrompts:
    """What a text encoder made of prompts, in a folder of one file for each; `encoder` names its weights.

    Wan's text is filled up with zeros to a fixed length: those at its end are not written, and come back. HunyuanVideo's one vector for
    all words is the row behind them.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self._folder, self.encoder = folder / PROMPTS, encoder

    def keep(
        self, prompts: Iterable[str], embed: Callable[[str], Tensor], tell: Callable[[int], None] = lambda n: None
    ) -> None:
        """Embed `[W, 4096]` those that are not there yet, each once; `tell` hears how many, if any.

        Raises ProjectError where the disk refuses.
        """
        with explained(f"make the folder {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
        missing = [prompt for prompt in sorted(set(prompts)) if not self._is_kept(prompt)]
        if missing:
            tell(len(missing))
        for prompt in missing:
            words = embed(prompt)
            said = words.any(dim=1).nonzero()
            spoken = int(said.max()) + 1 if len(said) else 1
            with whole_file(self._path(prompt)) as part:
                save_file({_WORDS: words[:spoken].contiguous()}, part, metadata={_COUNT: str(len(words))})

    def count(self, prompt: str) -> int:
        """See `Prompts`."""
        with safe_open(self._path(prompt), framework="pt") as file:
            return int((file.metadata() or {})[_COUNT])

    def words(self, prompt: str) -> Tensor:
        """See `Prompts`."""
        with safe_open(self._path(prompt), framework="pt") as file:
            spoken: Tensor = file.get_tensor(_WORDS)
            return functional.pad(spoken, (0, 0, 0, int(file.metadata()[_COUNT]) - len(spoken)))

    def _path(self, prompt: str) -> Path:
        digest = hashlib.sha256(f"{self.encoder} {prompt}".encode()).hexdigest()[:32]
        return self._folder / f"{digest}.safetensors"

    def _is_kept(self, prompt: str) -> bool:
        if not self._path(prompt).is_file():
            return False
        try:
            return self.count(prompt) > 0
        except (SafetensorError, KeyError, ValueError):
            return False
