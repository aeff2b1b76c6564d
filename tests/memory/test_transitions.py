"""How shots begin: what a cut leaves to be read, and under which prompts a blend is made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longreel.memory.chunks import plan_chunks
from longreel.memory.config import BankConfig, MemoryConfig
from longreel.memory.select import select_frames
from longreel.memory.storyboard import Transition
from longreel.memory.transitions import Reach, blends, reaches

PLAN = plan_chunks((2, 3, 4), 3)
KEEP, CUT, CLEAN, RECACHE = (Transition(kind) for kind in ("keep", "cut", "cut clean", "recache"))
FPS = 16.0


def test_a_cut_drops_the_window_and_a_clean_one_closes_the_bank_for_good() -> None:
    assert reaches(PLAN, (KEEP, RECACHE, KEEP)) == (Reach(), Reach(), Reach())
    assert reaches(PLAN, (KEEP, CUT, KEEP)) == (Reach(), Reach(6, 0), Reach(6, 0))
    assert reaches(PLAN, (KEEP, CUT, CUT)) == (Reach(), Reach(6, 0), Reach(15, 0))
    assert reaches(PLAN, (KEEP, CLEAN, CUT)) == (Reach(), Reach(6, 6), Reach(15, 6))
    assert reaches(PLAN, (CUT, KEEP, KEEP)) == (Reach(), Reach(), Reach())


@given(st.integers(1, 30), st.integers(0, 3), st.integers(0, 8), st.integers(0, 60), st.integers(0, 60))
def test_after_a_cut_nothing_before_it_is_read_but_the_sink(
    chunk: int, sink: int, extra: int, window_from: int, bank_from: int
) -> None:
    start = 3 * chunk
    reach = Reach(min(window_from, start), min(bank_from, start))
    config = MemoryConfig(window_frames=3 + extra, sink_frames=sink, bank=BankConfig())
    read, offered = select_frames(range(start), start, 3, config, reach)
    assert all(frame < sink or frame >= reach.window_from for frame in read)
    assert all(frame >= reach.bank_from for frame in offered)
    assert set(offered) | set(read) >= set(range(reach.bank_from, start))
    assert not set(offered) & set(read)


def test_a_cut_reaches_a_memory_that_reads_everything_too() -> None:
    full = MemoryConfig(window_frames=None, sink_frames=0)
    assert select_frames(range(12), 12, 3, full, Reach(6, 0)).read == tuple(range(6, 12))


@pytest.mark.parametrize(
    ("seconds", "weights"),
    [(0.1, (0.5,)), (0.75, (0.5,)), (1.5, (1 / 3, 2 / 3)), (60.0, (0.25, 0.5, 0.75))],
)
def test_a_blend_moves_from_prompt_to_prompt_and_ends_within_its_shot(
    seconds: float, weights: tuple[float, ...]
) -> None:
    made = blends(PLAN, (KEEP, Transition("blend", seconds), KEEP), FPS)
    assert [blend.chunk for blend in made] == list(range(2, 2 + len(weights)))
    assert {blend.shot for blend in made} == {1}
    assert [blend.weight for blend in made] == pytest.approx(list(weights))
