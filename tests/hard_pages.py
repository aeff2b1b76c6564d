"""Awkward memories for the kernels: everything that may not be read is not a number."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from numerics import KERNEL_ERROR_FACTOR, KERNEL_ERROR_ULPS
from torch import Tensor

from longreel.kernels.dispatch import Operation, facts_of
from longreel.kernels.pages import PageLists, Pages

NAN = float("nan")
INTERPRETING = facts_of(torch.empty(1)).device == "interpreter"
EXAMPLES = 4 if INTERPRETING else 25  # a page takes the interpreter milliseconds


def runs(operation: Operation) -> list[tuple[str, str, torch.dtype]]:
    """Every implementation that can run here, on each device and in each type that it allows.

    In a process where Triton interprets only its kernels are named: torch's are tested in the process without it.
    """
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    facts = [facts_of(torch.empty(1, 64, dtype=dtype, device=device)) for device in devices for dtype in dtypes]
    return [
        (implementation.name, "cpu" if fact.device == "interpreter" else fact.device, fact.dtype)
        for implementation in operation.implementations
        for fact in facts
        if implementation.needs.refusal(fact) is None and not (INTERPRETING and implementation.name == "torch")
    ]


def name_of(value: object) -> str | None:
    """Short names of tests."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


@dataclass(frozen=True, slots=True)
class Memory:
    """Pages, queries and lists of random numbers."""

    heads: int = 2
    tokens: int = 40
    group_tokens: int = 16
    head_dim: int = 64
    page_tokens: int = 16
    dense_tokens: int = 40
    bank_pages: int = 6
    listed: int = 3
    ragged: bool = True
    full: bool = False
    token_major: bool = False
    seed: int = 0

    def build(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Pages, PageLists]:
        """Queries `[L, H, D]`, pages and lists; what no list names, and what lies behind a length, is NaN."""
        generator = torch.Generator().manual_seed(self.seed)
        first = -(-self.dense_tokens // self.page_tokens)
        count = max(first + self.bank_pages, 1)
        lists = self.lists(first, generator)
        lengths = torch.full((self.heads, count), self.page_tokens)
        if self.ragged:
            lengths = torch.randint(1, self.page_tokens + 1, lengths.shape, generator=generator)
        shape = (self.heads, count * self.page_tokens, self.head_dim)
        read = self.read(lists, lengths).flatten(1, 2)[..., None]
        k, v = (torch.randn(shape, generator=generator).masked_fill(~read, NAN) for _ in range(2))
        if self.token_major:
            k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (k, v))
        k, v = (x.to(device, dtype).unflatten(1, (count, self.page_tokens)) for x in (k, v))
        q = torch.randn((self.tokens, self.heads, 2, self.head_dim), generator=generator).to(device, dtype)[:, :, 0]
        return q, Pages(k, v, lengths.int().to(device)), PageLists(*(x.to(device) for x in lists))

    def lists(self, first: int, generator: torch.Generator) -> PageLists:
        """Lists of different lengths, in any order; what lies behind a count is no slot at all."""
        groups = -(-self.tokens // self.group_tokens)
        slots = torch.full((self.heads, groups, self.listed), 2**31 - 1)
        counts = torch.randint(0, self.listed + 1, slots.shape[:2], generator=generator)
        if self.full:
            counts.fill_(self.listed)
        for head in range(self.heads):
            for group in range(groups):
                length = int(counts[head, group])
                slots[head, group, :length] = torch.randperm(self.bank_pages, generator=generator)[:length] + first
        return PageLists(slots.int(), counts.int())

    def read(self, lists: PageLists, lengths: Tensor) -> Tensor:
        """Which tokens `[H, N, P]` some group reads."""
        read = torch.zeros(*lengths.shape, self.page_tokens, dtype=torch.bool)
        for head in range(self.heads):
            for slots, count in zip(lists.slots[head], lists.counts[head], strict=True):
                for slot in slots[: int(count)].tolist():
                    read[head, slot, : lengths[head, slot]] = True
        read.flatten(1, 2)[:, : self.dense_tokens] = True
        return read


BASE = Memory()
HARD = {
    "one page and nothing else": replace(BASE, dense_tokens=0, bank_pages=1, listed=1, full=True),
    "one query and one token": replace(BASE, tokens=1, dense_tokens=1, bank_pages=0, listed=0),
    "ragged pages, shuffled, some lists empty": BASE,
    "only dense tokens": replace(BASE, bank_pages=0, listed=0),
    "only lists": replace(BASE, dense_tokens=0, full=True),
    "nothing at all": replace(BASE, dense_tokens=0, bank_pages=0, listed=0),
    "a short last group": replace(BASE, tokens=37, group_tokens=20),
    "one group longer than a tile": replace(BASE, tokens=150, group_tokens=150, page_tokens=64, dense_tokens=100),
    "head size 128": replace(BASE, head_dim=128, page_tokens=64, dense_tokens=70),
    "tokens side by side over heads": replace(BASE, token_major=True),
    "OmniMem's groups of 15 and pages of 30": replace(BASE, tokens=45, group_tokens=15, page_tokens=30, full=True),
    "DecMem's pages longer than a tile": replace(BASE, tokens=65, group_tokens=65, page_tokens=65, dense_tokens=130),
    "tiny pages": replace(BASE, page_tokens=8, bank_pages=12, listed=8),
}
hard_cases = pytest.mark.parametrize("memory", HARD.values(), ids=HARD.keys())


def assert_as_good_as_torch(ours: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """Our error is at most twice that of PyTorch in the same type, or one rounding where PyTorch happens to be exact."""
    assert ours.dtype == torchs.dtype
    assert ours.shape == exact.shape
    scale = exact.double().norm().clamp(min=1e-30)
    our_error, torch_error = (float((x.double().cpu() - exact.double()).norm() / scale) for x in (ours, torchs))
    rounding = KERNEL_ERROR_ULPS * torch.finfo(ours.dtype).eps
    assert our_error <= max(KERNEL_ERROR_FACTOR * torch_error, rounding), (our_error, torch_error)
