"""Videos as the encoder's training sees films: latents, made once and kept on disk, and stretches of them with their captions."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..whole_file import explained, whole_file
from .clips import FilmClips
from .prompts import Prompts, TinyPrompts
from .storyworld import FPS, FRAME_STRIDE, Size
from .videos import CaptionedVideo, read_video

LATENTS = "latents"
HELD_OUT = 0.2
"""The last part of every video that no training sees, and at least one stretch."""
LEFT_OUT_EVERY = 10
"""Of videos that are too short for that so many make one that no training sees."""


class VideoLatents(NamedTuple):
    """A video as latents, which stay in their file until they are used, and the caption of each frame."""

    name: str
    digest: str  # of file, captions, size, rate and VAE
    latents: Tensor  # [C, T, h, w], normalised
    prompts: list[str]
    fps: int = FPS


def encode_videos(
    videos: Sequence[CaptionedVideo],
    size: Size,
    encode: Callable[[Tensor], Tensor],
    vae: str,
    out: Path,
    tell: Callable[[str], None] = lambda name: None,
    fps: int = FPS,
) -> list[VideoLatents]:
    """The latents of these videos: those that lie in `out/latents`, or made now and kept there.

    `encode` makes normalised latents `[1, C, T, h, w]` of a video `[1, 3, 4 (T - 1) + 1, H, W]` in -1..1, `fps` of them a
    second, `vae` names its weights, `tell` hears of every video that has to be encoded. Raises ValueError for a file that is no video, ProjectError
    where the disk refuses.
    """
    folder = out / LATENTS
    with explained(f"make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    return [_encoded(video, size, encode, vae, folder, tell, fps) for video in videos]


def _encoded(
    video: CaptionedVideo,
    size: Size,
    encode: Callable[[Tensor], Tensor],
    vae: str,
    folder: Path,
    tell: Callable[[str], None],
    fps: int,
) -> VideoLatents:
    digest = hashlib.sha256(f"{size} {fps} {vae} ".encode())
    with explained(f"read {video.path}"), video.path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    kept = folder / f"{video.path.stem}-{digest.hexdigest()[:16]}.safetensors"
    latents = _kept(kept)
    if latents is None:
        tell(video.path.name)
        with torch.inference_mode():
            made = encode(read_video(video.path, size, fps)[None])[0]
        with whole_file(kept) as part:
            save_file({LATENTS: made.contiguous()}, part)
        latents = load_file(kept)[LATENTS]
    digest.update(json.dumps(video.captions).encode())
    return VideoLatents(video.path.name, digest.hexdigest()[:16], latents, video.prompts(latents.shape[1], fps), fps)


def _kept(path: Path) -> Tensor | None:
    """The latents in this file, mapped and not read, or None where it is missing or broken."""
    if not path.is_file():
        return None
    try:
        return load_file(path)[LATENTS]
    except (SafetensorError, KeyError):
        return None


def _trained_on(totals: Sequence[int], frames: int) -> list[int]:
    """Of videos of so many latent frames, how many of each a training on stretches of `frames` sees, from its beginning.

    A video that is too short for a stretch to train on and another to measure on is seen whole, or not at all.
    """
    short = [number for number, total in enumerate(totals) if total < 2 * frames]
    left_out = set(short[LEFT_OUT_EVERY - 1 :: LEFT_OUT_EVERY] or (short[-1:] if len(short) == len(totals) else []))
    seen = [total if total < 2 * frames else total - max(frames, int(HELD_OUT * total)) for total in totals]
    return [0 if number in left_out else count for number, count in enumerate(seen)]


def refuse_short(name: str, latent_frames: int, fps: int, frames: int, alone: bool) -> None:
    """Raises ValueError for a video that is too short for a stretch of `frames`, or `alone` for one to train on and one to measure on."""
    if latent_frames >= (2 * frames if alone else frames):
        return
    least, both, got = ((FRAME_STRIDE * (count - 1) + 1) / fps for count in (frames, 2 * frames, latent_frames))
    raise ValueError(
        f"{name} needs to be at least {both:.1f} s long, for {frames} latent frames to train on and as many to "
        f"measure on, or {least:.1f} s beside others, got {got:.1f} s. Take it away, or give fewer --history-frames."
    )


class VideoFilms:
    """Stretches of `frames` latent frames out of videos; the end of every video is kept for measuring, of short ones every tenth.

    What is kept follows from `divided_by`, the longest stretch of all trainings of an encoder (None is `frames`), so that the next one
    measures nothing that the last one saw. `prompts` turns captions into words. Raises ValueError for a video that is too short for a stretch, and for a single one that is too
    short for a stretch to train on and another to measure on.
    """

    def __init__(
        self,
        videos: Sequence[VideoLatents],
        frames: int,
        prompts: Prompts | None = None,
        divided_by: int | None = None,
    ) -> None:
        self.frames, longest = frames, frames if divided_by is None else divided_by
        self._words: Prompts = prompts or TinyPrompts()
        for video in videos:
            refuse_short(video.name, len(video.prompts), video.fps, longest, alone=len(videos) == 1)
        self._prompts = [video.prompts for video in videos]
        self._counts = {prompt: self._words.count(prompt) for video in videos for prompt in set(video.prompts)}
        self._latents = [video.latents for video in videos]
        self._seen = _trained_on([latents.shape[1] for latents in self._latents], longest)
        made = [video.digest for video in videos] + ([self._words.encoder] if self._words.encoder else [])
        digest = hashlib.sha256(" ".join(made).encode()).hexdigest()[:16]
        self.name = f"{len(videos)} {'video' if len(videos) == 1 else 'videos'} {digest}"

    def seen_in(self, divided_by: int) -> bool:
        """Whether a training on these videos, divided by stretches of so many frames, saw a part of what is measured here."""
        totals = [latents.shape[1] for latents in self._latents]
        there = _trained_on(totals, divided_by)
        return any(more > seen for more, seen in zip(there, self._seen, strict=True))

    def _places(self, held_out: bool) -> list[tuple[int, int]]:
        """Every video and first frame of a stretch."""
        places = []
        for number, (latents, seen) in enumerate(zip(self._latents, self._seen, strict=True)):
            last = latents.shape[1] - self.frames
            starts = range(seen, last + 1) if held_out else range(seen - self.frames + 1)
            places += [(number, start) for start in starts]
        return places

    def clips(self, count: int, seed: int, step: int, held_out: bool = False) -> FilmClips:
        """So many random stretches, whose last captions have equally many words, so that none has to be padded."""
        latents, prompts = self._cut(self._chosen(count, seed, step, held_out))
        return FilmClips(
            latents,
            torch.zeros(latents[:, 0].shape),
            torch.stack([film[-1] for film in prompts]),
            prompts,
            self._words.words(""),
        )

    def others(self, count: int, seed: int, step: int) -> tuple[Tensor, list[list[Tensor]]]:
        """For each of the held-out `clips` a stretch of another film: latents `[B, 16, T, h, w]`, and the words of every frame.

        It comes from another video's end; where there is one video, from the part of it that is not measured.
        """
        rng = random.Random(f"{seed} others {step}")
        unseen, seen = self._places(held_out=True), self._places(held_out=False)
        chosen = []
        for video, _ in self._chosen(count, seed, step, held_out=True):
            elsewhere = [place for place in unseen if place[0] != video]
            chosen.append(rng.choice(elsewhere or seen))
        return self._cut(chosen)

    def _chosen(self, count: int, seed: int, step: int, held_out: bool) -> list[tuple[int, int]]:
        rng = random.Random(f"{seed} {'unseen' if held_out else 'videos'} {step}")
        places = self._places(held_out)
        first = rng.choice(places)
        alike = [place for place in places if self._last_words(place) == self._last_words(first)]
        return [first, *rng.choices(alike, k=count - 1)]

    def _cut(self, places: Sequence[tuple[int, int]]) -> tuple[Tensor, list[list[Tensor]]]:
        latents = torch.stack([self._latents[video][:, start : start + self.frames] for video, start in places]).float()
        said = [self._prompts[video][start : start + self.frames] for video, start in places]
        words = {prompt: self._words.words(prompt) for prompt in {prompt for film in said for prompt in film}}
        return latents, [[words[prompt] for prompt in film] for film in said]

    def _last_words(self, place: tuple[int, int]) -> int:
        video, start = place
        return self._counts[self._prompts[video][start + self.frames - 1]]
