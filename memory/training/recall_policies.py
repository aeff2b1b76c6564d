"""What the recall benchmark measures: which memories, on how many films of which length, at which distances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..config import MemoryConfig
from ..encoder_spec import RATES
from ..frame_pages import MIN_PAGES_PER_FRAME, FramePages, PageShape, cut_frame
from ..gates import GateForm
from ..positions import PositionPolicy
from ..presets import DECMEM, GATED_PRESETS, LONGREEL, MEMFLOW, OMNIMEM, PRESETS, memflow
from ..prompt_bank import PromptBankConfig, Scorer
from .recall import SAMPLING_STEPS
from .storyworld import HEIGHT, NAMES, WIDTH

TRAINED_CHUNKS = 12
"""Chunks of a training clip."""
WINDOW_CHUNKS = 3
"""Chunks of the window, the one being made included."""
REFERENCE = "full, absolute"
"""The policy that is always measured and that all others are compared with, film by film."""
OURS = "LongReel"
WINDOW_AND_SINK = "window + sink"
"""What most long-video models read; where it is measured, all others are compared with it, too."""
FEWEST_CHARACTERS = 4
FEWEST_FILMS = 2
FRAME = cut_frame(HEIGHT // 16, WIDTH // 16, PageShape.SQUARE)
MIN_GROUPS_PER_CHUNK = 8
BUDGETS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Pages that a group reads."""


PINS = "prompt bank, pins"
"""The shot in which the returning character was seen is pinned, film by film."""
RELEASED = f"{MEMFLOW}, as released"
"""A bank that is filled as `released_memflow.py` says."""
ENCODERS = "encoders"
BUDGETED = "budgets"
COMPARISONS = ("memories", BUDGETED, "ablations", "banks", ENCODERS)
"""Memories that `--compare` sets side by side."""
TRANSITIONS = "transitions"
"""What it sets side by side as well, in a table of its own."""


WHOLE = ("every frame whole, own prompts", "every frame whole, one prompt")
"""Rows without an encoder: the model as it is reads all frames of the film, each under its own prompt or all under the newest."""


UNTRAINED = {f"smaller frames {rate}": rate for rate in RATES}
"""Rows of the model as it is beside smaller frames of the film, which no training taught it to read."""


def encoder_policies(name: str) -> tuple[str, str, str, str]:
    """The rows of an encoder: its tokens alone, beside the newest frames, alone but read in the first step of a chunk only, and
    alone but committed when they are appended.

    Encoders whose tokens change from step to step have only two.
    """
    return name, f"{name} + window", f"{name}, read once", f"{name}, committed"


def recall_policies(
    chunk_frames: int, compare: str = "memories", own: PositionPolicy = PositionPolicy.ABSOLUTE
) -> dict[str, MemoryConfig]:
    """The memories by name, for chunks of this many frames; `own` are the positions of the model's family.

    A new policy is one line here.
    """
    window, trained = WINDOW_CHUNKS * chunk_frames, TRAINED_CHUNKS * chunk_frames
    full = {f"full, {positions.value}": MemoryConfig(None, 0, positions, trained) for positions in PositionPolicy}
    sink = MemoryConfig(window, chunk_frames, own, trained)
    ours = replace(sink, bank=PRESETS[LONGREEL].bank)
    if compare == BUDGETED:
        return {
            REFERENCE: full[REFERENCE],
            **{f"{OURS}, {pages} pages": _reading(ours, frames_worth=pages / FRAME.count) for pages in BUDGETS},
        }
    if compare == "ablations":
        return {REFERENCE: full[REFERENCE], OURS: ours, **_ablations(ours)}
    if compare == "banks":
        return {REFERENCE: full[REFERENCE], WINDOW_AND_SINK: sink, **_banks(sink, chunk_frames)}
    if compare == ENCODERS:
        return {REFERENCE: full[REFERENCE], "window": replace(sink, sink_frames=0)}
    return {
        "window": replace(sink, sink_frames=0),
        WINDOW_AND_SINK: sink,
        **full,
        OURS: ours,
        f"{OURS}, clamped": replace(ours, positions=PositionPolicy.CLAMPED),
        "OmniMem": replace(sink, sink_frames=0, bank=PRESETS[OMNIMEM].bank),
        "DecMem": replace(sink, sink_frames=0, bank=PRESETS[DECMEM].bank),
        "prompt bank": replace(sink, prompt_bank=PromptBankConfig()),
    }


def gated_name(form: GateForm) -> str:
    """The row of the memory that is read with gates of this form; the preset's own row is the same without."""
    return f"{GATED_PRESETS[form]}, gated"


def _reading(ours: MemoryConfig, **changes: Any) -> MemoryConfig:
    assert ours.bank is not None
    return replace(ours, bank=replace(ours.bank, **changes))


def _ablations(ours: MemoryConfig) -> dict[str, MemoryConfig]:
    return {
        "the window is chosen again": _reading(ours, exclude_window=False),
        "one list a chunk": _reading(ours, groups=False),
        "groups of 8": _reading(ours, group_tokens=8),
        "groups of 16": _reading(ours, group_tokens=16),
        "pages of 4": _reading(ours, page_tokens=4),
        "pages of 16": _reading(ours, page_tokens=16),
        "strips of 3 x 2": _reading(ours, pages=PageShape.STRIP),
        "sixths of a frame": _reading(ours, pages=PageShape.SIXTH),
        "one level": _reading(ours, index_frames=None),
        "index of 16 frames": _reading(ours, index_frames=16),
        "shortlist of 32 pages": _reading(ours, shortlist=32),
        "first shortlist kept": _reading(ours, refresh=False),
        "8 bits": _reading(ours, eight_bit=True),
        "no sink": replace(ours, sink_frames=0),
    }


def _banks(sink: MemoryConfig, chunk_frames: int) -> dict[str, MemoryConfig]:
    """Banks of 3 chunks beside the same window and sink, without anchors and pins but where their names say so."""

    def bank(**settings: Any) -> MemoryConfig:
        return replace(sink, prompt_bank=PromptBankConfig(**{"frames": 3 * chunk_frames, **settings}))

    by_model = (Scorer.KEY_KEY, Scorer.ATTENTION_MASS, Scorer.VISUAL_QUERY)
    return {
        "prompt bank": bank(),
        **{scorer.value: bank(scorer=scorer) for scorer in by_model},
        **{f"{scorer.value}, per layer": bank(scorer=scorer, per_layer=True) for scorer in by_model},
        "prompt bank, a third read": bank(parts=float(chunk_frames)),
        MEMFLOW: memflow(sink, chunk_frames=chunk_frames),
        RELEASED: bank(variety=0.0),
        "prompt bank, anchors": bank(anchors=True),
        PINS: bank(pins="shot 1"),
    }


class Cell(NamedTuple):
    """Films of `chunks` chunks whose returning character was seen `distance` chunks before the last one."""

    chunks: int
    distance: int


FULL_CELLS = tuple(
    Cell(chunks, distance)
    for chunks, distances in ((12, (1, 2, 6, 11)), (24, (6, 23)), (48, (6, 24, 40)))
    for distance in distances
)
LONG_CELLS = (Cell(12, 11), Cell(48, 40), Cell(120, 60))
"""Four and ten times as long as a training clip; of 120 frames little may be read."""
QUICK_CELLS = (Cell(12, 1), Cell(12, 11), Cell(24, 23))


@dataclass(frozen=True, slots=True)
class RecallBench:
    """How much is measured: `films` a cell, and `drift_films` free-running films of `drift_chunks` chunks.

    A chunk is drawn in `steps`. Where `policies` are named only these are measured, beside the reference; which of them
    there are says `compare`; `encoders` are the names of those that --compare encoders sets side by side. Raises ValueError for anything that makes no sense.
    """

    films: int = 96
    cells: tuple[Cell, ...] = FULL_CELLS
    drift_films: int = 12
    drift_chunks: int = 48
    chunk_frames: int = 1
    characters: int = 5
    seed: int = 0
    compare: str = "memories"
    policies: tuple[str, ...] = ()
    steps: int = SAMPLING_STEPS
    encoders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.films < FEWEST_FILMS:
            raise ValueError(
                f"The recall bench needs at least {FEWEST_FILMS} films, got {self.films}. Use 96 for numbers to publish."
            )
        if self.compare not in COMPARISONS:
            raise ValueError(
                f"The recall bench compares {', '.join(COMPARISONS)} or {TRANSITIONS}, got {self.compare}. Choose one of them."
            )
        known = [*recall_policies(self.chunk_frames, self.compare)]
        known += map(gated_name, GateForm) if self.compare == COMPARISONS[0] else ()
        known += (*WHOLE, *UNTRAINED) if self.compare == ENCODERS else ()
        known += [row for name in self.encoders for row in encoder_policies(name)]
        unknown = [name for name in self.policies if name not in known]
        if unknown:
            raise ValueError(
                f"--compare {self.compare} has no policy '{unknown[0]}'. Choose among: {'; '.join(known)}."
            )
        refusal = Geometry(self.chunk_frames).refusal if self.compare == "ablations" else None
        if refusal is not None:
            raise ValueError(refusal)
        if not 1 <= self.chunk_frames <= 3:
            raise ValueError(
                f"The tiny model was trained on chunks of 1 to 3 frames, got {self.chunk_frames}. Use 1 or 3."
            )
        most = min(len(NAMES), min(cell.chunks for cell in self.cells) - 1)
        if not FEWEST_CHARACTERS <= self.characters <= most:
            raise ValueError(
                f"The recall bench needs {FEWEST_CHARACTERS} to {most} characters a film, got {self.characters}: with "
                "fewer, drawing everybody's average would pass for memory; with more, not all of them would be seen."
            )
        for cell in self.cells:
            if not 1 <= cell.distance < cell.chunks:
                raise ValueError(
                    f"In a film of {cell.chunks} chunks a character can return after 1 to {cell.chunks - 1} chunks, got "
                    f"{cell.distance}. Make the film longer or the distance shorter."
                )
        if not 0 <= self.seed < 100:
            raise ValueError(
                f"The recall bench needs a seed from 0 to 99, got {self.seed}. Each stands for other films."
            )
        if self.steps < 1:
            raise ValueError(f"A chunk needs at least 1 step, got {self.steps}.")
        if self.drift_films < 0:
            raise ValueError(f"The recall bench needs 0 or more films for the drift, got {self.drift_films}.")

    def measured(self, positions: PositionPolicy = PositionPolicy.ABSOLUTE) -> dict[str, MemoryConfig]:
        """The memories that are measured, by name; `positions` are those of the model's family."""
        known = recall_policies(self.chunk_frames, self.compare, positions)
        return {name: config for name, config in known.items() if self.wants(name)}

    def wants(self, name: str) -> bool:
        """Whether this memory is measured."""
        return not self.policies or name in (REFERENCE, *self.policies)


FULL = RecallBench()
QUICK = RecallBench(films=3, cells=QUICK_CELLS, drift_films=1, drift_chunks=12)
"""Enough to see whether a model recalls, within 5 minutes on 2 cores."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How finely the tiny frame can be selected from: pages that are read, groups of queries that read alike."""

    chunk_frames: int
    frame: FramePages = FRAME

    @property
    def pages_per_frame(self) -> int:
        """Pages of a frame."""
        return self.frame.count

    @property
    def groups_per_chunk(self) -> int:
        """Groups of a chunk."""
        return -(-self.chunk_frames * len(self.frame.order) // self.frame.group_tokens)

    @property
    def refusal(self) -> str | None:
        """Why nothing can be learned about selection at this size, or None: a page must be small against a character."""
        if self.pages_per_frame >= MIN_PAGES_PER_FRAME and self.groups_per_chunk >= MIN_GROUPS_PER_CHUNK:
            return None
        return (
            f"A comparison of ways to select needs at least {MIN_PAGES_PER_FRAME} pages a frame and "
            f"{MIN_GROUPS_PER_CHUNK} groups a chunk, got {self.pages_per_frame} and {self.groups_per_chunk}. Use longer "
            "chunks (--chunk-frames 3) or smaller groups."
        )
