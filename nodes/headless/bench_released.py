"""Lets a film of the recall bench remember as MemFlow's published code does. Not part of any node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ...memory.chunks import Plan
from ...memory.prompt_bank import Wish
from ...memory.rollout import FinishedChunk
from ...memory.session import RunSession
from ...memory.story import Story
from ...memory.training.recall_policies import RELEASED
from ...memory.training.released_memflow import ReleasedBank

Watch = Callable[[FinishedChunk, RunSession], None]


@dataclass(frozen=True, slots=True)
class ReleasedStory(Story):
    """A story that lets chunks read of the past what is in the released bank, beside sink and window, and nothing else.

    A frame that is in the bank several times is read once: its copies would only make it count more.
    """

    bank: ReleasedBank = field(default_factory=ReleasedBank)
    open_frames: frozenset[int] = frozenset()

    def wish(self, shot: int) -> Wish:
        """All that is neither in the bank nor among the `open_frames` is vetoed."""
        kept = {*self.bank.frames, *self.open_frames}
        return Wish(vetoed=frozenset(frame for frame in range(len(self.shots)) if frame not in kept))


def watcher(policy: str, plan: Plan) -> Watch:
    """What is to be done after each chunk of a film under this policy."""
    if policy != RELEASED:
        return lambda done, session: None
    bank = ReleasedBank()

    def watch(done: FinishedChunk, session: RunSession) -> None:
        chunk, following = done.chunk, plan.chunks[min(done.chunk.index + 1, len(plan.chunks) - 1)]
        bank.finish(chunk.index, chunk.frames.start)
        bank.begin(lambda frames: [0.0] * len(frames), switched=following.shot != chunk.shot)
        assert session.story is not None
        open_frames = frozenset(session.memory.coming.read)
        if isinstance(session.story, ReleasedStory):
            session.story = replace(session.story, open_frames=open_frames)
        else:
            session.story = ReleasedStory(session.story.shots, bank=bank, open_frames=open_frames)

    return watch
