"""What one run changes, and the one place where the phases of a chunk meet the model's attention."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from .gates import Gates
from .kv_memory import NO_WISH, KVMemory
from .prompt_bank import Wish
from .select import EVERYTHING
from .story import Story
from .transitions import Reach


class Phase(Enum):
    """A chunk is denoised while memory is read, then run once more, clean, to be written."""

    DENOISE = "denoise"
    COMMIT = "commit"


@dataclass(slots=True)
class LayerCall:
    """All that one attention call of a host is to memory.

    `q`, `k`, `v` are `[B, L, H, D]` with rotary embedding applied at the chunk's times. `q_timeless` and `k_timeless` carry
    the spatial turn alone, one where the session `selects`, the other where it commits. Row r of the batch belongs to stream
    `streams[r]`. `host_attention` maps `[1, L, H, D]`, `[1, L + read, H, D]` twice to `[1, L, H x D]` and is the host's own
    choice. `gates` is `[B, L, H, branches]` where the session has gates. The first `words` tokens are the prompt's, where a
    model joins text and picture: they read as the chunk does and are read by it, but not remembered.
    """

    layer: int
    streams: tuple[int, ...]
    q: Tensor
    k: Tensor
    v: Tensor
    q_timeless: Tensor | None
    k_timeless: Tensor | None
    host_attention: Callable[[Tensor, Tensor, Tensor], Tensor]
    gates: Tensor | None = None
    words: int = 0


@dataclass(slots=True)
class Rope:
    """Rotary tables of the chunk, made once from the table `source` that the host hands to every layer.

    `timeless` leaves out the turn of time; it is there for a commit and where pages are selected.
    """

    source: Tensor
    absolute: Tensor
    timeless: Tensor | None


class RunSession:
    """State of one run: memory, phase and the frames being made. Made before sampling, dropped in `finally`."""

    def __init__(
        self,
        memory: KVMemory,
        text_tokens: int = 0,
        reaches: tuple[Reach, ...] = (),
        gates: Gates | None = None,
    ) -> None:
        """`text_tokens` is the length of the longest prompt whose keys and values are kept for a shot; 0 keeps none.

        `reaches` says how far back each shot may look; a shot without one looks back as far as memory goes. `gates` mix the
        branches of a memory that was planned for them.
        """
        self.memory, self.reaches = memory, reaches
        self.story: Story | None = None  # what shots ask for
        self.folder: Path | None = None  # takes the pages that lie beside the card; without one they are in RAM
        self.gates = gates
        self.text_tokens = text_tokens
        self._text: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self.phase = Phase.DENOISE
        self.prompt = 0  # that the model is run under: a shot's, or one behind them, as in a blend
        self.frames = range(0)
        self.rope: Rope | None = None

    @property
    def idle(self) -> bool:
        """Whether attention has nothing to add: nothing to read and nothing to write."""
        reads = self.memory.read_frames or self.selects or self.gates is not None
        return self.phase is Phase.DENOISE and not reads

    @property
    def selects(self) -> bool:
        """Whether queries choose what they read."""
        return self.memory.selects

    @property
    def tier(self) -> str:
        """Where the pages of the film lie: card, ram or file."""
        if not self.memory.store.indexed:
            return "card"
        return "ram" if self.folder is None else "file"

    @property
    def peak_bytes(self) -> int:
        """Bytes that the run takes at most: memory, gates, and the keys and values of the text."""
        spec = self.memory.spec
        text = 2 * spec.layers * self.text_tokens * spec.heads * spec.head_dim * spec.dtype.itemsize
        gates = 0 if self.gates is None else self.gates.bytes
        return self.memory.peak_bytes + gates + self.memory.streams * text

    @property
    def host_bytes(self) -> int:
        """Bytes that memory takes in RAM or in files."""
        return self.memory.host_bytes

    def text(self, key: Hashable, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, L, H x D]` of the text that `key` stands for, made once a shot."""
        if self.text_tokens == 0:
            return make()
        if key not in self._text:
            self._text[key] = make()
        return self._text[key]

    def forget_text(self) -> None:
        """Drop the text, as another shot begins."""
        self._text.clear()

    @property
    def hears(self) -> bool:
        """Whether what cross-attention looks at is recorded."""
        return self.phase is Phase.COMMIT and self.memory.record is not None and self.memory.record.listens

    def hear(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Record what the chunk's queries `[L, H, D]` see in the words `[W, H, D]` of `prompt`, padding left out."""
        assert self.memory.record is not None
        assert self.story is not None
        assert self.story.affinity is not None
        real = self.story.affinity.real[self.prompt].to(k.device)
        self.memory.record.write(layer, self.frames, q, k[: len(real)][real])

    def begin(self, frames: range, shot: int = 0) -> None:
        """Start the chunk of these frames under the prompt of this shot."""
        self.frames, self.rope = frames, None
        self.memory.begin(frames, self._wish(shot), self.reach(shot))

    def enter_step(self, step: int, steps: int) -> None:
        """The chunk is at this step of so many, the first one being 0; what is read is told by steps."""
        if self.memory.bank is not None:
            self.memory.bank.enter_step(step, steps)

    def _wish(self, shot: int) -> Wish:
        memory, bank = self.memory, self.memory.config.prompt_bank
        if self.story is None:
            return NO_WISH
        if memory.record is None or bank is None:
            return self.story.wish(shot)
        return self.story.wish_by(memory.record, memory.table.frames, shot, memory.frame_means, bank)

    def reach(self, shot: int) -> Reach:
        """How far back chunks of this shot may look."""
        return self.reaches[shot] if shot < len(self.reaches) else EVERYTHING

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Write what the model computes inside, and publish it unless an error comes out."""
        self.memory.reserve(self.frames)
        self.phase, self.rope = Phase.COMMIT, None
        try:
            yield
            self.memory.publish()
            if self.memory.record is not None:
                self.memory.record.publish(self.frames, self.prompt)
        except BaseException:
            self.memory.abandon()
            raise
        finally:
            self.phase = Phase.DENOISE

    def attend(self, call: LayerCall) -> Tensor:
        """Attention output `[B, L, H x D]` of the chunk over what its stream remembers and itself."""
        outputs = []
        for row, stream in enumerate(call.streams):
            k, v = self.memory.read(call.layer, stream, call.k[row], call.v[row])
            if self.gates is not None:
                outputs.append(self._gated(call, row, stream, k, v, self.gates))
            elif self.selects:
                assert call.q_timeless is not None
                outputs.append(self.memory.read_selected(call.layer, stream, call.q[row], call.q_timeless[row]))
            else:
                outputs.append(call.host_attention(call.q[row : row + 1], k, v))
            if self.phase is Phase.COMMIT:
                assert call.k_timeless is not None
                self.memory.write(call.layer, stream, call.k_timeless[row, call.words :], call.v[row, call.words :])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _gated(self, call: LayerCall, row: int, stream: int, k: Tensor, v: Tensor, gates: Gates) -> Tensor:
        """Attention `[1, L, H x D]` branch by branch, mixed; as long as nothing is older than the window, nothing is selected."""
        assert call.gates is not None
        q, heads = call.q[row], call.q.shape[2]
        branches = {"window": call.host_attention(q[None], k, v)[0].unflatten(-1, (heads, -1))}  # [L, H, D]
        if self.selects:
            assert call.q_timeless is not None
            found = self.memory.read_selected(call.layer, stream, q, call.q_timeless[row], pages_alone=True)
            branches["selection"] = found[0].unflatten(-1, (heads, -1))
        if self.memory.compression is not None:
            branches["compression"] = self.memory.compression.attend(call.layer, stream, q, call.k[row], call.v[row])
        return gates.mix(call.gates[row], branches).flatten(1)[None]
