"""Laws of the working set: every wanted frame has one place, and only what changed is copied."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longreel.memory.working_set import Placement, assign_places

placements = st.builds(Placement, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2))
wanted_lists = st.lists(placements, unique=True, max_size=8)


@given(st.lists(st.none() | placements, max_size=8), wanted_lists)
def test_every_wanted_frame_has_exactly_one_place(resident: list[Placement | None], wanted: list[Placement]) -> None:
    places, copies = assign_places(resident, wanted)
    assert sorted(map(repr, places)) == sorted(map(repr, wanted))
    assert all(places[copy.place] == copy.placement for copy in copies)


@given(st.lists(st.none() | placements, max_size=8), wanted_lists)
def test_a_place_that_is_not_copied_to_held_its_frame_before(
    resident: list[Placement | None], wanted: list[Placement]
) -> None:
    places, copies = assign_places(resident, wanted)
    copied = {copy.place for copy in copies}
    assert all(resident[index] == placement for index, placement in enumerate(places) if index not in copied)


@given(wanted_lists)
def test_what_is_already_there_is_not_copied_again(wanted: list[Placement]) -> None:
    places, _ = assign_places([], wanted)
    assert assign_places(places, wanted) == (places, [])
