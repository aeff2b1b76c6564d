"""How soon a new prompt shows, whichever way its shot begins. Films through the real chunk loop; import after `boot_host`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from ...memory.chunks import Plan, plan_chunks
from ...memory.config import MemoryConfig
from ...memory.rollout import FinishedChunk
from ...memory.storyboard import Transition
from ...memory.training.recall import sampling_levels
from ...memory.training.recall_policies import WINDOW_CHUNKS, recall_policies
from ...memory.training.recall_scores import JUDGED, last_truth, scene_of
from ...memory.training.recall_statistics import mean, mean_interval, share_interval
from ...memory.training.storyworld import FPS, FRAME_STRIDE, NAMES, PLACES, POSITIONS, Film, random_look, random_shot
from ...memory.training.tiny_vae import FIRST_TEST_SEED
from ...memory.transitions import blends, reaches
from ..host.attach import attach_memory
from ..host.conditioning import blended
from ..host.film_sampler import FilmSampler, SeededNoise
from ..host.guider import FilmGuider
from .bench_recall import FILMS_PER_SEED, LATENT_CHANNELS, LATENT_SIZE, SAMPLER, TinyModel

CHARACTERS = 4
SHOT_CHUNKS = 3
NEW_CHUNKS = 4
"""Chunks of the shot that is drawn."""
BLEND_CHUNKS = 2


def transition_film(seed: int, chunk_frames: int) -> Film:
    """Four shots, each with another character; in the fifth the second one comes back, in another place and position.

    It was seen in neither sink nor window.
    """
    rng = random.Random(f"transition {seed}")
    cast = rng.sample(NAMES, CHARACTERS)
    looks = {name: random_look(rng) for name in cast}
    lengths = [*[SHOT_CHUNKS] * CHARACTERS, NEW_CHUNKS]
    shots, start = [], 0
    for name, chunks in zip([*cast, cast[1]], lengths, strict=True):
        shots.append(random_shot(rng, name, start, chunks * chunk_frames))
        start += chunks * chunk_frames
    before = shots[-2]
    place = rng.choice([place for place in PLACES if place != before.place])
    position = rng.choice([position for position in POSITIONS if position != before.position])
    shots[-1] = shots[-1]._replace(place=place, position=position)
    return Film(looks, tuple(shots))


@dataclass(frozen=True, slots=True)
class Switch:
    """One film under one transition: which chunks of the new shot obey its prompt, and who its last chunk shows."""

    transition: str
    obeyed: tuple[bool, ...]
    identity: float
    who: bool
    read_frames: int

    @property
    def until(self) -> int:
        """The first chunk that shows the new prompt, from 1; one more than there are where none does."""
        return next((number for number, obeyed in enumerate(self.obeyed, start=1) if obeyed), len(self.obeyed) + 1)


def transitions(chunk_frames: int) -> tuple[Transition, ...]:
    """All ways in which a shot may begin."""
    blend = Transition("blend", BLEND_CHUNKS * chunk_frames * FRAME_STRIDE / FPS)
    return (*map(Transition, ("keep", "recache")), blend, *map(Transition, ("cut", "cut clean")))


def measure_transitions(
    model: TinyModel, films: int, chunk_frames: int, seed: int, tell: Callable[[int], None]
) -> list[Switch]:
    """Every transition on the same films and noise, with a prompt bank beside window and sink."""
    config = recall_policies(chunk_frames, "banks", model.positions)["prompt bank"]
    switches = []
    for index in range(films):
        drawn = FILMS_PER_SEED * seed + index
        film = transition_film(FIRST_TEST_SEED + drawn, chunk_frames)
        switches += [_switch(model, film, config, way, drawn) for way in transitions(chunk_frames)]
        tell(index + 1)
    return switches


@torch.inference_mode()
def _switch(model: TinyModel, film: Film, config: MemoryConfig, transition: Transition, seed: int) -> Switch:
    new = film.shots[-1]
    size = new.frames // NEW_CHUNKS
    plan = plan_chunks([shot.frames // size for shot in film.shots], size)
    made = _draw(model, film, plan, config, transition, seed)
    history = model.encode(film)[:, :, : new.start]
    latents = torch.cat([history, *(done.latents.to(history) for done in made)], dim=2)
    obeyed = []
    for number in range(1, NEW_CHUNKS + 1):
        shown = new._replace(frames=number * size)
        pictures = model.last_pictures(latents[:, :, : new.start + number * size])[0]
        obeyed.append(scene_of(shown, film.looks[new.name]).obeyed(pictures[JUDGED]))
    score = last_truth(film).score(model.last_pictures(latents)[0])
    return Switch(
        transition.kind, tuple(obeyed), score.identity_cosine, bool(score.who_is_it), len(made[0].read_frames)
    )


def _draw(
    model: TinyModel, film: Film, plan: Plan, config: MemoryConfig, transition: Transition, seed: int
) -> list[FinishedChunk]:
    """The chunks of the last shot, drawn behind the true ones."""
    ways = [*[Transition()] * (len(film.shots) - 1), transition]
    mixes = blends(plan, ways, FPS)
    prompts: list[Any] = [model.prompt(shot.prompt) for shot in film.shots]
    mixed = [blended(prompts[mix.shot - 1], prompts[mix.shot], mix.weight) for mix in mixes]
    history = model.encode(film)[:, :, : film.shots[-1].start]
    made: list[FinishedChunk] = []

    def load(index: int) -> Tensor | None:
        frames = plan.chunks[index].frames
        return history[:, :, frames.start : frames.stop] if frames.stop <= history.shape[2] else None

    def finished(done: FinishedChunk, guider: FilmGuider) -> None:
        if not done.replayed:
            made.append(done)

    sampler = FilmSampler(
        plan=plan,
        noise=SeededNoise((seed,) * len(film.shots)),
        recache_shots=frozenset({len(film.shots) - 1} if transition.kind == "recache" else ()),
        latent_size=LATENT_SIZE,
        inner=comfy.samplers.ksampler(SAMPLER),
        start=None,
        load=load,
        finished=finished,
        reaches=reaches(plan, ways),
        prompts={(plan.chunks[mix.chunk].frames.start, mix.shot): len(prompts) + at for at, mix in enumerate(mixes)},
    )
    guider = FilmGuider(attach_memory(model.model, config), [*prompts, *mixed], prompts[0], 1.0)
    template = torch.zeros(1, LATENT_CHANNELS, plan.longest_chunk, *LATENT_SIZE)
    guider.sample(template, template, sampler, torch.tensor(sampling_levels()), disable_pbar=True, seed=0)
    return made


def transition_rows(switches: Sequence[Switch]) -> list[dict[str, Any]]:
    """One row a transition: means and shares with their 95 % intervals."""
    rows = []
    for kind in dict.fromkeys(switch.transition for switch in switches):
        mine = [switch for switch in switches if switch.transition == kind]
        until = [float(switch.until) for switch in mine]
        identity = [switch.identity for switch in mine]
        shares = {
            "first_chunk": [float(switch.obeyed[0]) for switch in mine],
            "last_chunk": [float(switch.obeyed[-1]) for switch in mine],
            "who_is_it": [float(switch.who) for switch in mine],
        }
        row: dict[str, Any] = {"transition": kind, "films": len(mine)}
        row |= {"chunks_until": mean(until), "chunks_until_interval": mean_interval(until)}
        row |= {"identity_cosine": mean(identity), "identity_cosine_interval": mean_interval(identity)}
        for name, values in shares.items():
            row |= {name: mean(values), f"{name}_interval": share_interval(values)}
        rows.append({**row, "frames_read": mean([float(switch.read_frames) for switch in mine])})
    return rows


def transition_table(rows: Sequence[dict[str, Any]], chunk_frames: int) -> str:
    """The rows for people."""

    def told(row: dict[str, Any], name: str) -> str:
        low, high = row[f"{name}_interval"]
        return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"

    head = "begins with|films|chunks until the new prompt shows|first chunk obeys|last obeys|identity|who is it|frames read first"
    lines = [head.split("|"), ["---"] * 8]
    for row in rows:
        names = ("chunks_until", "first_chunk", "last_chunk", "identity_cosine", "who_is_it")
        lines.append(
            [row["transition"], str(row["films"]), *(told(row, name) for name in names), f"{row['frames_read']:.1f}"]
        )
    title = (
        f"**The {NEW_CHUNKS} chunks of a new shot** behind {CHARACTERS} shots of {SHOT_CHUNKS}, in another place and position; "
        f"who comes back was in the second. Chunks of {chunk_frames} latent frames, window {WINDOW_CHUNKS} chunks, sink 1, a "
        f"prompt bank of 3; chance of who is it {1 / CHARACTERS:.2f}; mean [95 % interval]."
    )
    return title + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)
