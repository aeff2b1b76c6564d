"""How a frame is cut into pages: the order of its tokens, and how many make a page and a group. Integers only.

A page should be small and compact, so that its mean says what is in it. Tokens are taken in strips, one strip going
right and the next one left, column by column: any run of neighbours is then about as wide as a strip is high, and a
strip of 15 rows cut into 30 tokens is OmniMem's 15 x 2.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from enum import Enum

MIN_PAGES_PER_FRAME = 6
PAGE_TOKENS, GROUP_TOKENS = 64, 128
SMALL_PAGE_TOKENS, SMALL_GROUP_TOKENS = 8, 4
STRIP_ROWS, SMALL_STRIP_ROWS = 15, 3
STRIP_COLUMNS = 2
SIXTHS = 6


class PageShape(Enum):
    """What a page is: LongReel's about square run of tokens, OmniMem's tall strip, or DecMem's sixth of a frame."""

    SQUARE = "square"
    STRIP = "strip"
    SIXTH = "sixth"


@dataclass(frozen=True, slots=True)
class FramePages:
    """A frame of `len(order)` tokens: `order` gives the raster index of each, page by page; the last may be short.

    `group_tokens` neighbouring queries of a chunk, in the same order, share what they read.
    """

    order: tuple[int, ...]
    page_tokens: int
    group_tokens: int

    @property
    def count(self) -> int:
        """Pages of a frame."""
        return -(-len(self.order) // self.page_tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each page."""
        return tuple(min(self.page_tokens, len(self.order) - at) for at in range(0, len(self.order), self.page_tokens))


def cut_frame(
    rows: int, columns: int, shape: PageShape, page_tokens: int | None = None, group_tokens: int | None = None
) -> FramePages:
    """Pages and groups of this shape for a frame of rows x columns tokens, smaller ones where the frame is tiny.

    `page_tokens` and `group_tokens` take the place of the shape's own.
    """
    tokens = rows * columns
    tiny = tokens < MIN_PAGES_PER_FRAME * PAGE_TOKENS
    if shape is PageShape.SIXTH:
        page = group = -(-tokens // SIXTHS)
        strips = 2
    elif shape is PageShape.STRIP:
        height = SMALL_STRIP_ROWS if tiny else STRIP_ROWS
        page, group = STRIP_COLUMNS * height, height
        strips = round(rows / height)
    else:
        page, group = (SMALL_PAGE_TOKENS, SMALL_GROUP_TOKENS) if tiny else (PAGE_TOKENS, GROUP_TOKENS)
        strips = round(rows / math.sqrt(page))
    order = snake(rows, columns, max(1, min(strips, rows)))
    return FramePages(order, page_tokens or page, group_tokens or group)


def snake(rows: int, columns: int, strips: int) -> tuple[int, ...]:
    """Raster indices of a frame in strips of about equal height, column by column, every second strip from the right."""
    edges = [strip * rows // strips for strip in range(strips + 1)]
    order = []
    for strip, (top, bottom) in enumerate(itertools.pairwise(edges)):
        across = range(columns) if strip % 2 == 0 else range(columns - 1, -1, -1)
        order += [row * columns + column for column in across for row in range(top, bottom)]
    return tuple(order)
