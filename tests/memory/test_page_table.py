"""Laws of the page table: a slot is never lost, shared, or overwritten while it is readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from longreel.memory.page_table import PageTable

CAPACITY, PAGES = 8, 3


class Committing(RuleBasedStateMachine):
    """Any order of reserve, publish, abandon and evict."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PageTable(CAPACITY, PAGES)
        self.readable: dict[int, int] = {}
        self.next_frame = 0

    @precondition(lambda self: not self.table.reserved and len(self.readable) < CAPACITY)
    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        count = data.draw(st.integers(1, CAPACITY - len(self.readable)))
        frames = range(self.next_frame, self.next_frame + count)
        self.table.reserve(frames)
        self.next_frame += count
        written = {self.table.reserved_slot(frame) for frame in frames}
        assert written.isdisjoint(self.readable.values())

    @rule()
    def publish(self) -> None:
        self.readable.update({frame: self.table.reserved_slot(frame) for frame in self.table.reserved})
        self.table.publish()

    @rule()
    def abandon(self) -> None:
        self.table.abandon()

    @precondition(lambda self: bool(self.readable))
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        frames = data.draw(st.sets(st.sampled_from(sorted(self.readable)), min_size=1))
        self.table.evict(frames)
        for frame in frames:
            del self.readable[frame]

    @invariant()
    def nothing_is_lost_or_shared(self) -> None:
        self.table.check()

    @invariant()
    def readable_frames_stay_where_they_are(self) -> None:
        assert {frame: self.table.first_slot(frame) for frame in self.table.frames} == self.readable


TestAnyOrderOfCommits = Committing.TestCase


@given(st.integers(1, 9), st.integers(1, 30))
def test_every_slot_is_a_multiple_of_the_pages_of_a_frame(capacity: int, pages: int) -> None:
    table = PageTable(capacity, pages)
    table.reserve(range(capacity))
    assert {table.reserved_slot(frame) for frame in range(capacity)} == set(range(0, capacity * pages, pages))


def test_a_frame_cannot_be_reserved_twice() -> None:
    table = PageTable(4, 1)
    table.reserve([5])
    with pytest.raises(ValueError, match="Frame 5 is already in memory"):
        table.reserve([5])


def test_a_pool_that_is_full_says_what_it_needs_and_takes_nothing() -> None:
    table = PageTable(2, 1)
    table.reserve([0])
    with pytest.raises(RuntimeError, match="needs 2 free frames, has 1"):
        table.reserve([1, 2])
    assert table.reserved == (0,)


def test_the_integrity_check_sees_a_lost_slot() -> None:
    table = PageTable(2, 1)
    table._free.pop()
    with pytest.raises(RuntimeError, match="lost or shared a slot"):
        table.check()
