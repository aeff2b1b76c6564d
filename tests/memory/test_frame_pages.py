"""Pages of a frame: every token once, small and compact."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreel.memory.frame_pages import MIN_PAGES_PER_FRAME, FramePages, PageShape, cut_frame, snake

WAN_ROWS, WAN_COLUMNS = 30, 52  # 832x480


def boxes(frame: FramePages, columns: int) -> list[tuple[int, int]]:
    """Height and width of the box around each page."""
    found = []
    for start in range(0, len(frame.order), frame.page_tokens):
        page = frame.order[start : start + frame.page_tokens]
        rows, across = [token // columns for token in page], [token % columns for token in page]
        found.append((max(rows) - min(rows) + 1, max(across) - min(across) + 1))
    return found


@given(st.integers(1, 40), st.integers(1, 60), st.sampled_from(PageShape))
def test_every_token_lies_in_exactly_one_page(rows: int, columns: int, shape: PageShape) -> None:
    frame = cut_frame(rows, columns, shape)
    assert sorted(frame.order) == list(range(rows * columns))
    assert sum(frame.lengths) == rows * columns
    assert len(frame.lengths) == frame.count


def test_a_strip_is_omnimems_tile_of_15_rows_and_2_columns() -> None:
    frame = cut_frame(WAN_ROWS, WAN_COLUMNS, PageShape.STRIP)
    assert set(boxes(frame, WAN_COLUMNS)) == {(15, 2)}
    assert (frame.page_tokens, frame.group_tokens, frame.count) == (30, 15, 52)


def test_a_sixth_is_a_sixth_of_the_frame() -> None:
    frame = cut_frame(WAN_ROWS, WAN_COLUMNS, PageShape.SIXTH)
    assert frame.lengths == (260,) * 6
    assert all(height == 15 and width <= 19 for height, width in boxes(frame, WAN_COLUMNS))


def test_our_pages_of_64_tokens_are_about_square() -> None:
    frame = cut_frame(WAN_ROWS, WAN_COLUMNS, PageShape.SQUARE)
    assert (frame.page_tokens, frame.group_tokens, frame.count, frame.lengths[-1]) == (64, 128, 25, 24)
    # Where a strip ends the snake turns into the one below: a page there is two strips high.
    assert all(height <= 16 and width <= 11 for height, width in boxes(frame, WAN_COLUMNS))


@pytest.mark.parametrize(("shape", "page", "group"), [("square", 8, 4), ("strip", 6, 3), ("sixth", 8, 8)])
def test_a_tiny_frame_still_has_pages_to_choose_from(shape: str, page: int, group: int) -> None:
    frame = cut_frame(6, 8, PageShape(shape))
    assert (frame.page_tokens, frame.group_tokens) == (page, group)
    assert frame.count >= MIN_PAGES_PER_FRAME


def test_pages_and_groups_may_have_other_sizes_than_their_shape_brings() -> None:
    frame = cut_frame(6, 8, PageShape.SQUARE, page_tokens=16, group_tokens=48)
    assert (frame.page_tokens, frame.group_tokens, frame.count) == (16, 48, 3)
    assert frame.order == cut_frame(6, 8, PageShape.SQUARE).order
    assert cut_frame(2, 3, PageShape.SQUARE, page_tokens=64).lengths == (6,)


def test_neighbours_in_the_order_touch_each_other_or_begin_a_column() -> None:
    rows, columns = 6, 8
    order = snake(rows, columns, 2)
    for before, after in pairwise(order):
        assert abs(before % columns - after % columns) <= 1
        assert abs(before // columns - after // columns) <= rows // 2
