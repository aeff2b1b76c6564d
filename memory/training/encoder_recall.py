"""Does who comes back look the same, when the film is known through an encoder alone?"""

from __future__ import annotations

from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..encoded_history import History
from .clips import TileCodec, decode_latents, film_clips
from .encoder_chain import Encoders
from .encoder_settings import EncoderTraining
from .encoder_training import clean_batch, draw_frames, read_history
from .recall import recall_film, swapped_name
from .recall_scores import Truth, last_truth
from .run_folder import generator_for
from .storyworld import Film
from .tiny_vae import FIRST_TEST_SEED
from .words import embed_text, split_words

CHARACTERS = 5
JUDGED_PICTURES = 4  # those of the last latent frame
WINDOW = 3


class EncoderRecall(NamedTuple):
    """Means over films whose returning character was seen once, in the first shot.

    `identity` is the cosine of the drawn character to its own look, `who` the share of films in which that is the nearest of all five
    looks (chance 0.2), `swapped` the same for the name that takes its place in the prompt, `other` the cosine when the tokens are another film's,
    `window` the cosine beside the newest frames without tokens, `averaging` what everybody's mean look would reach.
    """

    identity: float
    who: float
    swapped: float
    other: float
    window: float
    averaging: float


def returning_films(config: EncoderTraining, films: int) -> list[Film]:
    """Unseen films of the training's length, whose last prompts have equally many words."""
    chunks = config.history_frames // config.segment_frames + 1
    made = (recall_film(FIRST_TEST_SEED + seed, chunks, config.segment_frames, CHARACTERS) for seed in count())
    words = len(split_words(recall_film(FIRST_TEST_SEED, chunks, config.segment_frames, CHARACTERS).shots[-1].prompt))
    return list(islice((film for film in made if len(split_words(film.shots[-1].prompt)) == words), films))


@torch.no_grad()
def measure_encoder_recall(
    config: EncoderTraining, modules: Any, network: Any, encoder: Encoders, codec: TileCodec, films: int = 24
) -> EncoderRecall:
    """Draw the last shot of these films beside their tokens, without a window."""
    found = returning_films(config, films)
    swaps = [swapped_name(film) for film in found]
    truths, others = ([last_truth(film) for film in list_] for list_ in (found, swaps))
    device, clips = next(network.parameters()).device, film_clips(found, codec)
    batch, newest = (clean_batch(config, clips, window).to(device) for window in (0, WINDOW))
    beside = newest._replace(history=newest.history[:, :, :0])
    swapped_text = torch.cat([embed_text(film.shots[-1].prompt) for film in swaps]).to(device)
    noise = torch.randn(batch.target.shape, generator=generator_for(config.seed, "recall noise", 0)).to(device)

    def drawn(history: History | None, text: Tensor, judges: list[Truth]) -> list[Any]:
        made = draw_frames(modules, network, history, noise, text).cpu()
        return [
            judge.score(decode_latents(film, codec)[-JUDGED_PICTURES:])
            for judge, film in zip(judges, made, strict=True)
        ]

    with modules.training():
        tokens = read_history(modules, network, encoder, batch)
        assert tokens is not None
        own = drawn(tokens, batch.text, truths)
        swapped = drawn(tokens, swapped_text, others)
        other = drawn(tokens._replace(tokens=tokens.tokens.roll(1, dims=0)), batch.text, truths)
        window = drawn(read_history(modules, network, encoder, beside), batch.text, truths)
    return EncoderRecall(
        _mean([score.identity_cosine for score in own]),
        _mean([score.who_is_it for score in own]),
        _mean([score.who_is_it for score in swapped]),
        _mean([score.identity_cosine for score in other]),
        _mean([score.identity_cosine for score in window]),
        _mean([truth.looks.averaging(film) for truth, film in zip(truths, found, strict=True)]),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
