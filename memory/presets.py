"""Memories by name, in latent frames: what published systems read, ours, and what the user sets."""

from __future__ import annotations

from .config import BankConfig, MemoryConfig
from .frame_pages import PageShape
from .gates import GateForm

LONGREEL, OMNIMEM, DECMEM, LONGLIVE, FULL = "LongReel", "OmniMem", "DecMem", "LongLive", "full"
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
