"""Memories by name, in latent frames: what published systems read, ours, and what the user sets."""

from __future__ import annotations

from dataclasses import replace

from .config import BankConfig, MemoryConfig
from .frame_pages import PageShape
from .gates import GateForm
from .prompt_bank import PromptBankConfig, Scorer

LONGREEL, OMNIMEM, DECMEM, LONGLIVE, FULL = "LongReel", "OmniMem", "DecMem", "LongLive", "full"
MEMFLOW = "MemFlow"
OMNIMEM_PAGES, OMNIMEM_PAGES_PER_FRAME = 16, 52
DECMEM_PAGES, DECMEM_PAGES_PER_FRAME = 80, 6

PRESETS: dict[str, MemoryConfig] = {
    LONGREEL: MemoryConfig(window_frames=9, sink_frames=3, bank=BankConfig(frames_worth=2.5)),
    # 16 pages of 15 x 2 tokens for each 15 queries, no sink. Its own code offers all pages at every step, we offer those of
    # the shortlist.
    OMNIMEM: MemoryConfig(
        window_frames=9,
        sink_frames=0,
        bank=BankConfig(OMNIMEM_PAGES / OMNIMEM_PAGES_PER_FRAME, PageShape.STRIP, shortlist=512),
    ),
    # 80 sixths of frames for each sixth of a frame, beside a window of 8 frames, no sink.
    DECMEM: MemoryConfig(
        window_frames=8,
        sink_frames=0,
        bank=BankConfig(DECMEM_PAGES / DECMEM_PAGES_PER_FRAME, PageShape.SIXTH, shortlist=160),
    ),
    LONGLIVE: MemoryConfig(window_frames=9, sink_frames=3),
    FULL: MemoryConfig(window_frames=None, sink_frames=0),
}
"""Without gates (weights that only their own checkpoints have) all of them read with one softmax."""
GATED_PRESETS = {GateForm.OMNIMEM: OMNIMEM, GateForm.DECMEM: DECMEM}
"""The preset that gates of a form were trained for."""


def memflow(memory: MemoryConfig, pins: str = "", vetoes: str = "", chunk_frames: int = 3) -> MemoryConfig:
    """The published bank on a memory: counts are chunks of its 3 frames, the window holds the one being made.

    Without the faults of its code: the new prompt is known before it chooses, padding is no word of it, keys are free of
    time, no frame is there twice, and what was dropped may come back.
    """
    bank = PromptBankConfig(
        frames=3,
        variety=0.0,
        pins=pins,
        vetoes=vetoes,
        scorer=Scorer.KEY_KEY,
        per_layer=True,
        record_every=3 * chunk_frames,
        newest=True,
    )
    return replace(memory, window_frames=3 * chunk_frames, sink_frames=chunk_frames, bank=None, prompt_bank=bank)
