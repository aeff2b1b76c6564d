"""The file of a chunk's lists: what it holds, how large it is, and what is said of one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tensors_held import bytes_of, tensors_of

from longreel.kernels.pages import PageLists
from longreel.memory.config import BankConfig, KVSpec, MemoryConfig
from longreel.memory.kv_memory import KVMemory
from longreel.memory.selections import COMMIT, Call, SelectionLog, read_selections, save_selections, smallest

SPEC = KVSpec(3, 2, 16, 6, 8, 4, 10_000.0, torch.float32, torch.device("cpu"))
WAN = KVSpec(30, 12, 128, 30, 52, 44, 10_000.0, torch.bfloat16, torch.device("meta"))
FACTS = {"first_frame": 6, "end_frame": 9}


def full(*pages: list[int]) -> PageLists:
    """Lists of one head."""
    slots = torch.tensor([pages], dtype=torch.int32)
    return PageLists(slots, torch.full(slots.shape[:2], slots.shape[2], dtype=torch.int32))


def written(path: Path, shortlist: int = 300) -> SelectionLog:
    """Two steps and a commit of one layer and head, the second step from a new shortlist of other frames."""
    log = SelectionLog(KVSpec(1, 1, 16, 6, 8, 4, 1e4, torch.float32, torch.device("cpu")), 1, 10, shortlist, 3, 4)
    log.allocate()
    log.begin((5, 1000))
    log.enter(0)
    log.bring(0, 0, torch.tensor([[0, 0, 1]]), torch.tensor([[0, 3, 2]], dtype=torch.int32))
    log.keep(0, 0, full([10, 11], [11, 12]))
    log.enter(1)
    log.bring(0, 0, torch.tensor([[1, 1, 0]]), torch.tensor([[4, 5, 6]], dtype=torch.int32))
    log.keep(0, 0, full([10, 12], [10, 11]))
    log.commit()
    log.keep(0, 0, full([11, 12], [10, 12]))
    selections = log.finish(FACTS)
    assert selections is not None
    save_selections(path, selections)
    return log


def test_lists_and_shortlists_are_read_back_as_they_were(tmp_path: Path) -> None:
    written(tmp_path / "selections" / "00002.safetensors")
    read = read_selections(tmp_path / "selections" / "00002.safetensors")
    assert read.calls == (Call(0, 0, 0, 0, 2), Call(1, 0, 0, 1, 2), Call(COMMIT, 0, 0, 1, 2))
    assert read.lists_of(1, first_slot=10).slots.tolist() == [[[10, 12], [10, 11]]]
    assert read.lists_of(2).slots.tolist() == [[[1, 2], [0, 2]]]
    assert read.lists_of(2).counts.tolist() == [[2, 2]]
    assert [x.tolist() for x in read.shortlist_of(0)] == [[[5, 5, 1000]], [[0, 3, 2]]]
    assert [x.tolist() for x in read.shortlist_of(2)] == [[[1000, 1000, 5]], [[4, 5, 6]]]
    assert read.offered.tolist() == [5, 1000]
    assert read.facts == {**FACTS, "layers": 1, "heads": 1, "head_dim": 16}
    assert (read.frames.dtype, read.pages.dtype) == (np.int16, np.uint8)


def test_places_take_the_smallest_integers_that_hold_them() -> None:
    sizes = (256, 257, 32_768, 32_769)
    assert [smallest(count) for count in sizes] == [torch.uint8, torch.int16, torch.int16, torch.int32]


def test_a_chunk_of_which_nothing_was_kept_has_no_selections(tmp_path: Path) -> None:
    log = written(tmp_path / "00002.safetensors")
    log.begin((5, 6))
    assert log.finish(FACTS) is None


def test_a_file_is_no_larger_than_the_bill(tmp_path: Path) -> None:
    log = written(tmp_path / "00002.safetensors")
    bill = log.chunk_bytes(model_calls=3, shortlists=2, frames=1001, frame_pages=6)
    assert (tmp_path / "00002.safetensors").stat().st_size <= bill


def test_a_chunk_of_wan_takes_five_megabytes_and_one_step_of_it_waits_on_the_card() -> None:
    config = MemoryConfig(9, 3, bank=BankConfig())
    memory = KVMemory(WAN, config, 1, 3, 2400, keep_selections=True)
    plain = KVMemory(WAN, config, 1, 3, 2400)
    assert memory.peak_bytes - plain.peak_bytes == 30 * 12 * 37 * 62
    assert 4_500_000 < memory.selection_bytes(5) < 5_500_000
    assert plain.selection_bytes(5) == 0


def test_the_bill_counts_frames_by_the_length_of_the_film_not_by_how_far_it_looks_back() -> None:
    """A frame of 2,400 takes two bytes in a file, also where only the newest 60 are remembered."""
    bills = [
        KVMemory(WAN, MemoryConfig(9, 3, bank=BankConfig(look_back=back)), 1, 3, 2400, keep_selections=True)
        for back in (60, None)
    ]
    assert bills[0].selection_bytes(5) == bills[1].selection_bytes(5)


@pytest.mark.parametrize("words", [0, 11])
def test_the_announced_bytes_are_taken_and_dropped_with_the_memory(words: int) -> None:
    config = MemoryConfig(6, 2, bank=BankConfig(shortlist=20))
    memory = KVMemory(SPEC, config, 2, 3, 60, words=words, keep_selections=True)
    memory.allocate()
    assert bytes_of(tensors_of(memory)) == memory.peak_bytes + memory.host_bytes
    memory.release()
    assert bytes_of(tensors_of(memory)) == 0


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"nonsense")
    save_file({"latents": torch.zeros(1)}, tmp_path / "chunk.safetensors")
    with pytest.raises(ValueError, match=r"damaged.safetensors needs to be .* but it is damaged"):
        read_selections(tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=r"got another one. Render the film with 'keep_selections'"):
        read_selections(tmp_path / "chunk.safetensors")
    with pytest.raises(FileNotFoundError):
        read_selections(tmp_path / "gone.safetensors")
