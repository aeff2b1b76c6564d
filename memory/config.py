"""Settings of a memory: what the user chose (`MemoryConfig`) and what the model is (`KVSpec`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .frame_pages import FramePages, PageShape, cut_frame
from .positions import PositionPolicy
from .prompt_bank import PromptBankConfig

LONGEST_TRAINED_FRAMES = 21  # latent frames of the 81-frame clips that Wan 2.1 was trained on


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Keys and values of one model at one picture size, as the host adapter reports them."""

    layers: int
    heads: int
    head_dim: int
    rows: int
    columns: int
    time_channels: int
    theta: float
    dtype: torch.dtype
    device: torch.device

    @property
    def frame_tokens(self) -> int:
        """Tokens of a frame."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class BankConfig:
    """How what is older than the window is read: pages that each head chooses for each group of queries.

    `frames_worth` is how many keys a group reads, in keys of a frame. A chunk chooses among its `shortlist` best pages (of
    each layer and head), found in two levels: first the `index_frames` best frames, then their pages; None looks at
    all pages at once. `look_back` bounds how far back the bank reaches, in frames. `eight_bit` keeps pages at half the
    bytes. `page_tokens` and `group_tokens` take the place of those that go with the shape of `pages`. `groups` off gives a
    whole chunk one list, `exclude_window` off lets the window be chosen too, `refresh` off keeps the first shortlist of a chunk: what the
    benchmark compares with. Raises ValueError when a count makes no sense.
    """

    frames_worth: float = 2.5
    pages: PageShape = PageShape.SQUARE
    shortlist: int = 256
    index_frames: int | None = 64
    look_back: int | None = None
    eight_bit: bool = False
    page_tokens: int | None = None
    group_tokens: int | None = None
    groups: bool = True
    exclude_window: bool = True
    refresh: bool = True

    def __post_init__(self) -> None:
        if self.frames_worth <= 0:
            raise ValueError(
                f"The bank needs to read more than 0 frames' worth, got {self.frames_worth}. Turn 'read' up."
            )
        if self.shortlist < 1:
            raise ValueError(f"The shortlist needs at least 1 page, got {self.shortlist}. Turn the shortlist up.")
        if self.index_frames is not None and self.index_frames < 1:
            raise ValueError(f"The index needs at least 1 frame, got {self.index_frames}.")
        if self.look_back is not None and self.look_back < 1:
            raise ValueError(f"Looking back needs at least 1 frame, got {self.look_back}.")
        for name, tokens in (("page", self.page_tokens), ("group", self.group_tokens)):
            if tokens is not None and tokens < 1:
                raise ValueError(f"A {name} needs at least 1 token, got {tokens}.")

    def pages_read(self, pages_per_frame: int) -> int:
        """Pages that a group reads."""
        return max(1, round(self.frames_worth * pages_per_frame))


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """How much of the film is remembered; every count is latent frames.

    `window_frames` counts the chunk being made, as LongLive and MemFlow do; None reads everything. What is neither
    sink nor window is read through a `bank`, page by page, or a `prompt_bank`, whole frames; without them it is forgotten.
    Raises ValueError when a count makes no sense.
    """

    window_frames: int | None = 9
    sink_frames: int = 3
    positions: PositionPolicy = PositionPolicy.ABSOLUTE
    trained_frames: int = LONGEST_TRAINED_FRAMES
    bank: BankConfig | None = None
    prompt_bank: PromptBankConfig | None = None

    def __post_init__(self) -> None:
        if self.window_frames is not None and self.window_frames < 1:
            raise ValueError(f"The window needs at least 1 frame, got {self.window_frames}. Turn the window up.")
        if self.window_frames is None and self.keeps_film:
            raise ValueError(
                "A memory that reads everything needs no bank. Take another preset than 'full' of Sparse KV Memory, or "
                "remove the Prompt-Retrieved Memory Bank."
            )
        if self.bank is not None and self.prompt_bank is not None and self.prompt_bank.parts:
            raise ValueError(
                "This Sparse KV Memory chooses parts of the whole film already, those of the bank among them. Set 'parts' of "
                "the Prompt-Retrieved Memory Bank to 0, or take the preset 'window + sink' of Sparse KV Memory."
            )
        if self.bank is not None and self.prompt_bank is not None and self.prompt_bank.per_layer:
            raise ValueError(
                "This Sparse KV Memory searches the film for all layers of the model at once, so its prompt bank needs to hold "
                "the same frames for all. Turn 'per_layer' of the Prompt-Retrieved Memory Bank off, take the preset 'window + "
                "sink' of Sparse KV Memory, or put a bank with the preset 'MemFlow' behind it."
            )
        if self.sink_frames < 0:
            raise ValueError(f"The sink needs 0 or more frames, got {self.sink_frames}.")
        if self.trained_frames < 1:
            raise ValueError(f"The trained length needs at least 1 frame, got {self.trained_frames}.")

    def check_chunk(self, chunk_frames: int) -> None:
        """Raises ValueError when a chunk of this many frames does not fit into the window or the trained length."""
        if self.window_frames is not None and chunk_frames > self.window_frames:
            raise ValueError(
                f"A chunk of {chunk_frames} frames is longer than the window of {self.window_frames} frames: the window "
                f"counts the chunk being made. Set 'window' of Sparse KV Memory to {chunk_frames} or more with preset "
                "'window + sink' or 'custom' (add that node if it is not there), or turn 'chunk' of Storyboard down."
            )
        bounded = self.positions in (PositionPolicy.CLAMPED, PositionPolicy.ANCHORED)
        if bounded and chunk_frames >= self.trained_frames:
            raise ValueError(
                f"Positions '{self.positions.value}' need a trained length above the chunk's {chunk_frames} frames, got "
                f"{self.trained_frames}. Turn 'trained_frames' of Sparse KV Memory up, or choose other positions."
            )

    def described(self) -> dict[str, Any]:
        """The settings as plain JSON, without pins and vetoes: what they change is frames, and a film tells those itself."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=lambda choice: choice.value))
        if plain["prompt_bank"] is not None:
            del plain["prompt_bank"]["pins"], plain["prompt_bank"]["vetoes"]
        return plain

    def cut(self, rows: int, columns: int) -> FramePages:
        """How frames of rows x columns tokens are cut into pages."""
        bank = self.bank or BankConfig()
        return cut_frame(rows, columns, bank.pages, bank.page_tokens, bank.group_tokens)

    def paged(self, pages_per_frame: int) -> BankConfig | None:
        """How pages are read: of the bank, or of a prompt bank that is read in parts, all of which are listed."""
        if self.prompt_bank is None or not self.prompt_bank.parts:
            return self.bank
        listed = self.prompt_bank.frames * pages_per_frame
        return BankConfig(self.prompt_bank.parts, shortlist=listed, index_frames=None)

    @property
    def keeps_film(self) -> bool:
        """Whether frames that nobody reads now stay, to be read again."""
        return self.bank is not None or self.prompt_bank is not None

    def kept_frames(self, chunk_frames: int, film_frames: int, pinned_frames: int = 0) -> int:
        """Frames that are remembered at most in a film of this length, the chunk being written included."""
        read = self.history_frames(chunk_frames, film_frames, pinned_frames)
        if self.prompt_bank is not None or (self.bank is not None and self.bank.look_back is None):
            return film_frames
        if self.bank is not None and self.bank.look_back is not None:
            read = max(read, self.sink_frames + self.bank.look_back + pinned_frames)
        return min(read + chunk_frames, film_frames)

    def history_frames(self, chunk_frames: int, film_frames: int, pinned_frames: int = 0) -> int:
        """Older frames that all read, sink, window, prompt bank and pins together, at most, in a film of this length."""
        older = max(film_frames - chunk_frames, 0)
        if self.window_frames is None:
            return older
        brought_back = 0 if self.prompt_bank is None or self.prompt_bank.parts else self.prompt_bank.frames
        return min(self.sink_frames + self.window_frames - chunk_frames + brought_back + pinned_frames, older)
