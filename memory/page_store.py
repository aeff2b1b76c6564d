"""Where pages of the whole memory lie: keys free of time and values of every layer and stream, and their means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.page_write import write_pages
from ..kernels.pages import Pages, Rounding
from .config import KVSpec
from .frame_pages import FramePages


class PageStore:
    """Slots for `capacity_frames` frames; a frame is a run of neighbouring slots.

    Of a store that is `indexed` the means of frames are kept for selection, too, and pages lie beside the card, in RAM or in
    a file: the card holds what a chunk reads and no more. 8-bit pages are codes with a scale for each token; keys without
    the mean key of the first chunk, which is frozen. With `compressed` each page has its mean value, too.
    """

    def __init__(
        self,
        spec: KVSpec,
        frame: FramePages,
        streams: int,
        capacity_frames: int,
        *,
        indexed: bool,
        eight_bit: bool,
        compressed: bool = False,
    ) -> None:
        self.spec, self.frame, self.streams = spec, frame, streams
        self.capacity_frames, self.indexed, self.eight_bit = capacity_frames, indexed, eight_bit
        self.compressed = compressed
        self.device = torch.device("cpu") if self.indexed else spec.device
        self._rounded: set[tuple[int, int]] = set()
        self.release()

    def release(self) -> None:
        """Drop every tensor."""
        self._k = self._v = self._page_means = self._frame_means = self._lengths = torch.empty(0)
        self._value_means = torch.empty(0)
        self._k_scale = self._v_scale = self._k_mean = self._source = self._slots = torch.empty(0)
        self._rounded.clear()

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, on `device`."""
        spec, slots = self.spec, self.capacity_frames * self.frame.count
        keys = slots * self.frame.page_tokens
        means = slots + (self.capacity_frames if self.indexed else 0) + (slots if self.compressed else 0)
        itemsize = 1 if self.eight_bit else spec.dtype.itemsize
        head = 2 * keys * spec.head_dim * itemsize + means * spec.head_dim * spec.dtype.itemsize
        if self.eight_bit:
            head += (2 * keys + spec.head_dim) * torch.float32.itemsize
        return self.streams * spec.layers * spec.heads * head + slots * torch.int32.itemsize

    @property
    def page_bytes(self) -> int:
        """Bytes of keys and values of a page."""
        itemsize = 1 if self.eight_bit else self.spec.dtype.itemsize
        return 2 * self.frame.page_tokens * self.spec.head_dim * itemsize

    @property
    def frame_bytes(self) -> int:
        """Bytes of keys and values of a frame, all streams, layers and heads of it."""
        spec = self.spec
        return self.streams * spec.layers * spec.heads * self.frame.count * self.page_bytes

    def allocate(self, folder: Path | None = None) -> None:
        """Take the memory; all that grows with the film lies in files in `folder`, where one is given."""
        spec = self.spec
        lead = (self.streams, spec.layers, spec.heads)
        slots = self.capacity_frames * self.frame.count
        pages = (*lead, slots, self.frame.page_tokens, spec.head_dim)
        kind = torch.int8 if self.eight_bit else spec.dtype

        def take(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            if folder is None:
                return torch.empty(shape, dtype=dtype, device=self.device)
            return torch.from_file(str(folder / name), shared=True, size=math.prod(shape), dtype=dtype).view(shape)

        self._k, self._v = (take(name, pages, kind) for name in ("keys", "values"))
        if self.eight_bit:
            scales = ("key_scales", "value_scales")
            self._k_scale, self._v_scale = (take(name, pages[:-1], torch.float32) for name in scales)
            self._k_mean = torch.empty((*lead, spec.head_dim), dtype=torch.float32, device=self.device)
        self._page_means = take("page_means", (*lead, slots, spec.head_dim), spec.dtype)
        if self.compressed:
            self._value_means = take("value_means", (*lead, slots, spec.head_dim), spec.dtype)
        if self.indexed:
            self._frame_means = take("frame_means", (*lead, self.capacity_frames, spec.head_dim), spec.dtype)
        lengths = torch.tensor(self.frame.lengths, dtype=torch.int32, device=self.device)
        self._lengths = lengths.repeat(self.capacity_frames)

    def pages(self, layer: int, stream: int) -> Pages:
        """The pages of one layer and stream."""
        at = (stream, layer)
        lengths = self._lengths.expand(self.spec.heads, -1)
        rounding = Rounding(self._k_scale[at], self._v_scale[at], self._k_mean[at]) if self.eight_bit else None
        return Pages(self._k[at], self._v[at], lengths, rounding)

    def likeness(self, first_slots: Sequence[int], others: Sequence[int]) -> Tensor:
        """Cosine `[F, others]`, 0 to 1, of frames by their mean keys in the middle layer, what all of them share left out."""
        runs = torch.tensor([*first_slots, *others], device=self.device) // self.frame.count
        means = self._frame_means[0, self.spec.layers // 2][:, runs].float()  # [H, F + others, D]
        apart = (means - means.mean(dim=1, keepdim=True)).transpose(0, 1).flatten(1)
        unit = torch.nn.functional.normalize(apart)
        return (unit[: len(first_slots)] @ unit[len(first_slots) :].T).clamp(0, 1)

    def page_means(self, layer: int, stream: int) -> Tensor:
        """Mean key of every slot `[H, N, D]`."""
        return self._page_means[stream, layer]

    def value_means(self, layer: int, stream: int) -> Tensor:
        """Mean value of every slot `[H, N, D]`."""
        return self._value_means[stream, layer]

    def frame_means(self, layer: int, stream: int) -> Tensor:
        """Mean key of every run of slots `[H, capacity_frames, D]`."""
        return self._frame_means[stream, layer]

    def begin_write(self, first_slots: list[int]) -> None:
        """Announce where the frames of the coming chunk go, oldest first."""
        frame, tokens = self.frame, self.spec.frame_tokens
        padded = [*frame.order, *[0] * (frame.count * frame.page_tokens - tokens)]
        one = torch.tensor(padded, dtype=torch.int32).view(frame.count, frame.page_tokens)
        source = torch.cat([one + index * tokens for index in range(len(first_slots))])
        slots = [slot + page for slot in first_slots for page in range(frame.count)]
        self._source = source.to(self.device)  # [M, P]
        self._slots = torch.tensor(slots, dtype=torch.int32, device=self.device)  # [M]

    def write(self, layer: int, stream: int, k_timeless: Tensor, v: Tensor) -> None:
        """Write one layer's keys, free of time, and values `[L, H, D]` of the announced frames."""
        k, v = k_timeless.to(self.device, self.spec.dtype), v.to(self.device, self.spec.dtype)
        if self.eight_bit and (layer, stream) not in self._rounded:
            self._rounded.add((layer, stream))
            self._k_mean[stream, layer] = k.mean(dim=0, dtype=torch.float32)
        means = self._page_means[stream, layer]
        value_means = self._value_means[stream, layer] if self.compressed else None
        write_pages(k, v, self._source, self._slots, self.pages(layer, stream), means, value_means)
        if self.indexed:
            frames = self._slots[:: self.frame.count].long() // self.frame.count
            means = k.unflatten(0, (len(frames), -1)).mean(dim=1, dtype=torch.float32)  # [frames, H, D]
            self._frame_means[stream, layer, :, frames] = means.transpose(0, 1).to(self.spec.dtype)
