"""What was measured: rows for JSON, tables for people, and the tables again from the JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

ALL_LAYERS_FRAME = "a frame, all layers"
CARDS = (8, 12, 16, 24, 48, 141)


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation in one case.

    `times_dense` is how many times faster than dense attention over the whole history it is, `times_window` how many
    times as long as the window alone it takes, `times_peer` how many times faster than the fastest of the others that gives
    the same result. `first_milliseconds` is the first run, compiling included. What was not measured is None, and
    `note` says why.
    """

    case: str
    implementation: str
    milliseconds: float | None = None
    p10: float | None = None
    p90: float | None = None
    warm_milliseconds: float | None = None
    first_milliseconds: float | None = None
    relative_error: float | None = None
    times_dense: float | None = None
    times_window: float | None = None
    times_peer: float | None = None
    tflops: float | None = None
    gb_per_second: float | None = None
    peak_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class QualityRow:
    """What one way to select keeps of attention over the whole history, in one layer and at one step, on recorded tensors.

    `keys_read` and `mass` are shares: of the keys that there are, and of the attention that falls on keys that are
    read. `output_error` is relative to the output over everything.
    """

    selection: str
    layer: str
    step: str
    keys_read: float
    mass: float
    output_error: float


@dataclass(frozen=True, slots=True)
class KernelBench:
    """What `run_kernel_bench` measured."""

    profile: str
    machine: dict[str, str | float]
    bytes: dict[str, dict[str, int]]
    rows: list[Row]
    quality: list[QualityRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, kept: Mapping[str, Any]) -> KernelBench:
        """What `to_dict` gave."""
        rows = [Row(**row) for row in kept["rows"]]
        return cls(
            kept["profile"], kept["machine"], kept["bytes"], rows, [QualityRow(**row) for row in kept["quality"]]
        )

    def table(self) -> str:
        """The result for people, in Markdown."""
        parts = [self._times(), self._bytes(), self._frames_that_fit()]
        if self.quality:
            parts.append(self._quality())
        parts.append(table(("machine", ""), [(name, str(fact)) for name, fact in self.machine.items()]))
        return "\n\n".join(parts)

    def _times(self) -> str:
        head = (
            "case", "implementation", "ms", "10 to 90 %", "first ms", "error", "x faster than dense", "x window",
            "x faster than the best peer", "TFLOP/s", "GB/s", "peak MB", "",
        )  # fmt: skip
        lines = []
        for row in self.rows:
            tenths = "" if row.p10 is None or row.p90 is None else f"{row.p10:.3g} to {row.p90:.3g}"
            peak = None if row.peak_bytes is None else row.peak_bytes / 1e6
            ratios = (row.relative_error, row.times_dense, row.times_window, row.times_peer)
            numbers = (*ratios, row.tflops, row.gb_per_second, peak)
            times = (shown(row.milliseconds), tenths, shown(row.first_milliseconds))
            lines.append((row.case, row.implementation, *times, *map(shown, numbers), row.note))
        return table(head, lines)

    def _bytes(self) -> str:
        names = list(dict.fromkeys(name for held in self.bytes.values() for name in held))
        lines = [(case, *(f"{held[name] / 1e6:,.1f}" for name in names)) for case, held in self.bytes.items()]
        return table(("MB of one layer", *names), lines)

    def _frames_that_fit(self) -> str:
        """Keys and values alone: a model and what it computes with come on top."""
        lines = [
            (case, *(str(int(card * 1e9 / held[ALL_LAYERS_FRAME])) for card in CARDS))
            for case, held in self.bytes.items()
            if ALL_LAYERS_FRAME in held
        ]
        return table(("frames of whole history in", *(f"{card} GB" for card in CARDS)), lines)

    def _quality(self) -> str:
        lines = [
            (row.selection, row.layer, row.step, f"{row.keys_read:.1%}", f"{row.mass:.1%}", shown(row.output_error))
            for row in self.quality
        ]
        return table(("recorded film", "layer", "step", "keys read", "attention kept", "output error"), lines)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *lines))


def shown(number: float | None) -> str:
    """Three digits, or nothing."""
    return "" if number is None else f"{number:.3g}"
