"""Memory of a film of ten minutes: 2,400 frames."""

from __future__ import annotations

import pytest
from held_bytes import held_bytes


@pytest.mark.long
def test_memory_after_ten_minutes_is_as_large_as_after_twenty_seconds(host: object) -> None:
    held = held_bytes(600)
    assert len(held) > 2
    assert len(set(held)) == 1
