"""What the model's own cross-attention says of the frames of a film, and scores of frames by it.

As a chunk is committed, every layer looks at the words of its prompt: a frame's mean query, and how much of its attention
each word got, stay here. What a new prompt's words are to a layer is known before anything is chosen: its keys follow from
the prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from .config import KVSpec
from .prompt_affinity import PromptAffinity
from .prompt_bank import Scorer


class TextRecord:
    """Of each frame what `scorer` needs, of the first stream: mean queries, or the shares of attention that words got."""

    def __init__(self, spec: KVSpec, scorer: Scorer, film_frames: int, longest_prompt: int) -> None:
        """Plan a record; `longest_prompt` is in words. Nothing is allocated yet."""
        self.scorer, self._spec = scorer, spec
        self._shape: tuple[int, ...] = (spec.layers, film_frames, spec.heads, spec.head_dim)
        if scorer is Scorer.ATTENTION_MASS:
            self._shape = (spec.layers, film_frames, longest_prompt)
        elif scorer is not Scorer.VISUAL_QUERY:
            self._shape = (spec.layers, film_frames, 0)
        self.release()

    def release(self) -> None:
        """Drop every tensor and all that was recorded."""
        self._kept = torch.empty(0)
        self._prompts: dict[int, int] = {}

    @property
    def listens(self) -> bool:
        """Whether there is anything to record."""
        return self._shape[-1] > 0

    @property
    def bytes(self) -> int:
        """Bytes of RAM that `allocate` takes."""
        return int(torch.Size(self._shape).numel()) * torch.float32.itemsize

    def allocate(self) -> None:
        """Take the memory."""
        self._kept = torch.zeros(self._shape)

    def queries(self, frames: Sequence[int]) -> Tensor:
        """Mean query of each of these frames `[layers, F, H, D]`."""
        return self._kept[:, list(frames)]

    def shares(self, frame: int) -> Tensor:
        """Share of a frame's attention that each word of its prompt got `[layers, W]`."""
        return self._kept[:, frame]

    def prompt(self, frame: int) -> int:
        """The prompt that a frame was made under."""
        return self._prompts[frame]

    def write(self, layer: int, frames: range, q: Tensor, k: Tensor) -> None:
        """Record one layer's queries `[L, H, D]` of the chunk of these frames against the keys `[W, H, D]` of real words."""
        q = q.unflatten(0, (len(frames), -1))  # [T, L / T, H, D]
        if self.scorer is Scorer.VISUAL_QUERY:
            self._kept[layer, frames.start : frames.stop] = q.float().mean(dim=1).cpu()
            return
        for frame, queries in zip(frames, q, strict=True):
            looks = torch.einsum("lhd,whd->hlw", queries.float(), k.float()) / q.shape[-1] ** 0.5
            shares = looks.softmax(dim=-1).mean(dim=(0, 1)).cpu()
            self._kept[layer, frame] = pad(shares, (0, self._kept.shape[-1] - len(shares)))

    def publish(self, frames: range, prompt: int) -> None:
        """Frames of a finished commit, made under this prompt."""
        self._prompts.update(dict.fromkeys(frames, prompt))


def by_keys(text: Tensor, means: Tensor) -> Tensor:
    """MemFlow's score `[layers, F, 1]`: mean text key `[layers, H, D]` times mean key of each frame `[layers, H, F, D]`.

    Only its order counts, so each layer's scores are brought to 0..1.
    """
    scores = torch.einsum("lhd,lhfd->lf", text.float(), means.float())
    low, high = scores.amin(dim=1, keepdim=True), scores.amax(dim=1, keepdim=True)
    return ((scores - low) / (high - low).clamp_min(torch.finfo(scores.dtype).tiny))[..., None]


def by_queries(heard: Tensor, queries: Tensor) -> Tensor:
    """Cosine `[layers, F, 1]`, 0 to 1, of the newest of the prompts heard `[prompts, layers, H, D]` and frames' mean queries.

    What all prompts so far share is left out, and what all frames `[layers, F, H, D]` share.
    """
    text = (heard[-1] - heard.mean(dim=0)).flatten(1)  # [layers, H x D]
    seen = (queries - queries.mean(dim=1, keepdim=True)).flatten(2)  # [layers, F, H x D]
    return torch.einsum("ld,lfd->lf", normalize(text, dim=-1), normalize(seen, dim=-1)).clamp(0, 1)[..., None]


def by_attention(record: TextRecord, frames: Sequence[int], affinity: PromptAffinity, shot: int) -> Tensor:
    """What each word of a shot's prompt finds in frames `[layers, F, W]`: the best match, by how much the frame looked at it."""
    prompts = [record.prompt(frame) for frame in frames]
    matches = {prompt: affinity.matches(shot, prompt) for prompt in set(prompts)}
    rows = [
        (record.shares(frame)[:, : len(matches[prompt]), None] * matches[prompt]).amax(dim=1)
        for frame, prompt in zip(frames, prompts, strict=True)
    ]
    return torch.stack(rows, dim=1)
