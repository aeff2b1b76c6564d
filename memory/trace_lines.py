"""The lines of a trace: what is told of a film and of a chunk, in few bytes.

Of a chunk: `chunk`, `shot`, `frames` [first, end); `read_frames` that every query read whole, with `layer_shares`
[frame, share] where only some layers read one; `brought_frames` with their reasons `brought` [frame, why, score], which are
among them unless parts of a prompt bank are read; `frames_worth` of keys; `recached_frames`; a `transition` where a shot begins.

Of the bank, in ten thousandths of a frame's keys: `bank` [frame, amount], the mean over everything; `selected` [frame, cell,
amount, cell, amount, ...] where a cell is layer group x head groups + head group; `bank_steps` [frame, amount, amount, ...], one for
each step group. The largest amounts are told, what was left out adds up to `bank_rest`, to `selected_rest` in the mean over
cells, and to `bank_steps_rest` in each step group. `steps` are [lists, pages, different] of each step group: how many lists a head made
(weighed by them, the mean of `bank_steps` is `bank`), how many pages a list held, and how many pages of a shortlist were in any.
`mass` [layer group][head group] is the share of the attention that went to these pages, in ten thousandths, and `mass_steps` that of
each step group; both are missing where the kernel does not know it.

`excluded` are stretches [first, last] of frames that were not read, by the reason: `vetoed`, or closed by a `cut`.
`milliseconds` by part do not overlap (`Stopwatch`); `bytes`: `card` is taken there for the whole film, `ram` or `file` is
what the remembered frames fill, `moved` came from where memory lies to where it is read. `hits` are bytes of the keys and values that
were there to be read, by where they lay as the chunk began: `card` in its place from the chunk before, or in the store on the card; `ram` or
`file`. `drift` is that of `LatentDrift`; `remembered` counts frames behind the chunk; `blend` is the weight of the shot's own prompt;
`selection_bytes` is the size of the file with all lists (`selections.py`), where they are kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .config import MemoryConfig
from .encoded_history import EncodedHistory
from .history_session import HistorySession, Reading
from .inspection import UNIT
from .read_tally import BankReads
from .rollout import FinishedChunk
from .session import RunSession
from .trace_groups import head_groups, layer_groups

MOST_FRAMES = 512
MOST_SELECTED = 1_536
MOST_STEPPED = 128
WHOLE_CHUNKS = 750
"""Chunks of a film that may tell so much each; longer films tell less of each, so that ten minutes stay below 20 MB at 24 fps, too."""
DIGITS = 5


class LatentDrift:
    """Statistics of a film's latents, chunk by chunk, as the model sees them.

    `mean` and `std` are mean and standard deviation of all numbers of the chunk. `change` is the root mean square, over the
    latent channels, of the difference between the channel's mean and that of the chunk before; `since_start` the same
    against the film's first chunk. A film that keeps its colours and contrast stays at one `std`, and its `since_start`
    does not grow.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._before: Tensor | None = None

    def of(self, latents: Tensor) -> dict[str, float]:
        """Statistics of the next chunk `[1, C, T, H, W]`; differences are 0 for the first one."""
        latents = latents.detach().float()
        channels = latents.mean(dim=(0, 2, 3, 4))
        before = channels if self._before is None else self._before
        first = channels if self._first is None else self._first
        self._before, self._first = channels, first
        return {
            "mean": round(float(latents.mean()), DIGITS),
            "std": round(float(latents.std(correction=0)), DIGITS),
            "change": round(float((channels - before).square().mean().sqrt()), DIGITS),
            "since_start": round(float((channels - first).square().mean().sqrt()), DIGITS),
        }


def film_facts(session: RunSession | HistorySession) -> dict[str, Any]:
    """What the header tells of the memory of a run; through an encoder there are no layers to tell apart."""
    held = {"tier": session.tier, "peak_kv_bytes": session.peak_bytes, "host_kv_bytes": session.host_bytes}
    if isinstance(session, HistorySession):
        history = session.history
        often = "" if session.reading is Reading.EVERY_STEP else f", read {session.reading.value}"
        return {"memory": encoders_in_words(history) + often, "window_frames": history.window_frames, **held}
    memory = session.memory
    spec, config = memory.spec, memory.config
    return {
        "memory": in_words(config),
        "layers": spec.layers,
        "heads": spec.heads,
        "layer_groups": layer_groups(spec.layers),
        "head_groups": head_groups(spec.heads),
        "sink_frames": config.sink_frames,
        "window_frames": config.window_frames,
        **held,
    }


def chunk_line(
    done: FinishedChunk, session: RunSession | HistorySession, drift: Mapping[str, float], film_chunks: int
) -> dict[str, Any]:
    """What the trace tells of a chunk in a film of so many."""
    line: dict[str, Any] = {
        "chunk": done.chunk.index,
        "shot": done.chunk.shot,
        "frames": [done.chunk.frames.start, done.chunk.frames.stop],
        "read_frames": list(done.read_frames),
        "brought_frames": list(done.brought_frames),
        "brought": [[frame, why, _rounded(score)] for frame, (why, score) in sorted(done.brought.items())],
        "frames_worth": round(done.frames_worth, 3),
        "recached_frames": list(done.recached_frames),
        "remembered": done.remembered,
        "milliseconds": {part: round(spent, 3) for part, spent in done.milliseconds.items()},
        "bytes": {"card": session.peak_bytes, "ram": 0, "file": 0, "moved": done.moved_bytes},
        "drift": dict(drift),
        "finished": round(time.time(), 3),
    }
    if isinstance(session, RunSession):
        if session.tier != "card":
            line["bytes"][session.tier] = done.remembered * session.memory.store.frame_bytes
        line["hits"] = {"card": done.stayed_bytes}
        line["hits"][session.tier] = line["hits"].get(session.tier, 0) + done.moved_bytes
    if shares := {frame: share for frame, share in done.layer_shares.items() if share < 1}:
        line["layer_shares"] = [[frame, round(share, DIGITS)] for frame, share in shares.items()]
    if excluded := {why: stretches(frames) for why, frames in done.excluded.items() if frames}:
        line["excluded"] = excluded
    if done.bank_reads is not None:
        line.update(told_reads(done.bank_reads, film_chunks))
    return line


def told_reads(reads: BankReads, film_chunks: int = WHOLE_CHUNKS) -> dict[str, Any]:
    """The largest amounts of a chunk in a film of so many, and what was left out."""
    room = min(1.0, WHOLE_CHUNKS / film_chunks)
    most_frames, most_selected, most_stepped = (int(most * room) for most in (MOST_FRAMES, MOST_SELECTED, MOST_STEPPED))
    amounts = (reads.whole, reads.amounts, reads.steps)
    whole, cells, steps = (np.rint(told * UNIT).astype(np.int32) for told in amounts)
    count = len(reads.frames)
    stepped = largest(whole, most_stepped)
    kept, chosen = largest(whole, most_frames), largest(cells.ravel(), most_selected)
    rows: dict[int, list[int]] = {}
    for at, amount in zip(chosen.tolist(), cells.ravel()[chosen].tolist(), strict=True):
        rows.setdefault(at % count, [reads.frames[at % count]]).extend((at // count, amount))
    left_out = reads.amounts.sum() * UNIT - cells.ravel()[chosen].sum()
    mass = {"mass": reads.mass, "mass_steps": reads.mass_steps}
    known = {name: np.rint(share * UNIT).astype(int).tolist() for name, share in mass.items() if share is not None}
    return {
        **known,
        "bank": [[reads.frames[at], amount] for at, amount in zip(kept.tolist(), whole[kept].tolist(), strict=True)],
        "bank_rest": max(0, round(reads.whole.sum() * UNIT - whole[kept].sum())),
        "selected": [rows[at] for at in sorted(rows)],
        "selected_rest": max(0, round(left_out * count / reads.amounts.size)),
        "bank_steps": [[reads.frames[at], *steps[:, at].tolist()] for at in stepped.tolist()],
        "bank_steps_rest": np.rint((reads.steps.sum(axis=1) * UNIT - steps[:, stepped].sum(axis=1)).clip(0))
        .astype(int)
        .tolist(),
        "steps": [
            [lists, round(pages, 1), round(different, 1)]
            for lists, pages, different in zip(reads.lists, reads.listed_pages, reads.different_pages, strict=True)
        ],
    }


def largest(amounts: NDArray[np.int32], most: int) -> NDArray[np.int64]:
    """Where the largest amounts above 0 are, in their order, at most so many."""
    found = np.flatnonzero(amounts)
    if len(found) > most:
        found = found[np.sort(np.argpartition(-amounts[found], most)[:most])]
    return found


def stretches(numbers: Iterable[int]) -> list[list[int]]:
    """Ascending numbers as [first, last] of each unbroken run."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def in_words(config: MemoryConfig) -> str:
    """A memory in an artist's words."""
    if config.window_frames is None:
        return "everything"
    parts = [f"window of {config.window_frames} frames"]
    if config.sink_frames:
        parts.append(f"sink of {config.sink_frames}")
    if config.bank is not None:
        parts.append(f"pages worth {config.bank.frames_worth:g} frames from the whole film")
    if config.prompt_bank is not None:
        parts.append(f"{config.prompt_bank.frames} frames brought back by the prompt")
    return ", ".join(parts)


def encoders_in_words(history: EncodedHistory) -> str:
    """The memory of a film through encoders in an artist's words; which frames their tokens tell of is not traced."""
    told = [
        f"{'the whole film' if longest is None else f'the newest {longest} frames'} through a memory encoder {spec.kind}"
        for spec, longest, *_ in history.encoders
    ]
    return ", ".join([f"window of {history.window_frames} frames", *told[:-1], f"and {told[-1]}"])


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, DIGITS)
