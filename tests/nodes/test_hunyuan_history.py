"""History joins the host's own HunyuanVideo: what the host computes for one longer film is the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hunyuan_film import SPEC, drawn, lively_network
from numerics import FORWARD_ERROR, NOT_ROUNDING, relative_error
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longreel.memory.encoded_history import History, Level, Stretch
from longreel.memory.encoder import token_positions
from longreel.memory.encoder_spec import EncoderSpec, Modulation
from longreel.nodes.host.build_hunyuan import CLIP_WIDTH, TEXT_WIDTH, TinyHunyuanSpec, new_hunyuan
from longreel.nodes.host.history_family import check_alone
from longreel.nodes.host.hunyuan_history import OTHER_TOKENS, Call, anchored, with_history

FRAMES, OLDER, HEIGHT, WIDTH, WORDS = 3, 2, 8, 12, 7
TOKENS = HEIGHT * WIDTH // 4
LEVEL = 500.0


@dataclass(frozen=True)
class Scene:
    """A host network, frames that it denoises, older ones, and what it is given beside them."""

    network: Any
    x: Tensor
    older: Tensor
    given: dict[str, Tensor]

    def history(self, first_frame: float, modulation: Modulation = Modulation.TARGET, frames: int = OLDER) -> History:
        tokens = self.network.img_in.proj(self.older[:, :, :frames]).flatten(2).transpose(1, 2)
        times, rows, columns = (torch.arange(count).float() for count in (frames, HEIGHT // 2, WIDTH // 2))
        return History(tokens, torch.cartesian_prod(times + first_frame, rows, columns), modulation)

    def joined(self, history: History, options: dict[str, Any] | None = None, **inputs: Any) -> Tensor:
        given = {**self.given, **inputs}
        call = Call(torch.full((len(self.x),), LEVEL), given["y"], given["guidance"])
        return self.run(self.x, with_history(self.network, history, options or {}, call), **inputs)

    def run(self, x: Tensor, options: dict[str, Any], **inputs: Any) -> Tensor:
        with torch.inference_mode():
            made: Tensor = self.network(
                x, torch.full((len(x),), LEVEL), **{**self.given, **inputs}, transformer_options=options
            )
        return made

    def twice(self) -> Scene:
        pair = {name: value.expand(2, *value.shape[1:]) for name, value in self.given.items()}
        return Scene(self.network, self.x.expand(2, -1, -1, -1, -1), self.older, pair)


@pytest.fixture(scope="module")
def scene(host: object) -> Scene:
    network = lively_network(SPEC).requires_grad_(False).eval()
    x, older = (drawn(5 + frames, 1, 16, frames, HEIGHT, WIDTH) for frames in (FRAMES, OLDER))
    given = {"context": words(1), "y": drawn(2, 1, CLIP_WIDTH), "guidance": torch.tensor([6.0])}
    return Scene(network, x, older, given)


def words(seed: int, count: int = WORDS) -> Tensor:
    return drawn(seed, 1, count, TEXT_WIDTH)


def test_history_under_the_targets_level_is_what_the_host_makes_of_one_longer_film(scene: Scene) -> None:
    native = scene.run(torch.cat([scene.x, scene.older], dim=2), {})[:, :, :FRAMES]
    joined = scene.joined(scene.history(FRAMES))
    assert relative_error(joined, native) < FORWARD_ERROR
    assert relative_error(joined, scene.run(scene.x, {})) > NOT_ROUNDING


def test_a_chunk_behind_history_is_the_end_of_a_clip(scene: Scene) -> None:
    """Words stand where a clip begins, and there history is put."""
    native = scene.run(torch.cat([scene.older, scene.x], dim=2), {})[:, :, OLDER:]
    history = scene.history(-OLDER)
    assert relative_error(scene.joined(anchored(history, FRAMES)), native) < FORWARD_ERROR
    assert relative_error(scene.joined(history), native) > NOT_ROUNDING


@pytest.mark.parametrize(
    ("oldest", "frames", "start"), [(-5.5, 3, 6), (-30, 3, 30), (-31, 3, 30), (-200, 6, 27), (-9, 40, 0)]
)
def test_history_begins_with_the_clip_as_far_as_it_was_trained(oldest: float, frames: int, start: int) -> None:
    positions = torch.tensor([[oldest, 1.0, 2.0], [-1.0, 3.0, 4.0]])
    made = anchored(History(torch.zeros(1, 2, 8), positions, Modulation.CLEAN), frames)
    assert made.target_frames is not None
    assert made.target_frames.tolist() == [start + frame for frame in range(frames)]
    assert torch.equal(made.positions - torch.tensor([start, 0, 0]), positions)


@pytest.mark.parametrize(
    ("oldest", "times", "shift"),
    [(0.5, [3, 9, 20], 0), (0.5, [30, 31, 32], 0), (7.5, [12, 13], -7), (0.5, [50, 60], -28)],
)
def test_frames_with_times_of_their_own_keep_them_among_each_other(oldest: float, times: list[int], shift: int) -> None:
    """As frames are that stage I of an encoder's training asks for: among history, and not side by side."""
    positions, frames = torch.tensor([[oldest, 1.0, 2.0]]), torch.tensor(times, dtype=torch.float32)
    made = anchored(History(torch.zeros(1, 1, 8), positions, Modulation.CLEAN, frames), len(times))
    assert made.target_frames is not None
    assert made.target_frames.tolist() == [time + shift for time in times]
    assert torch.equal(made.positions - torch.tensor([shift, 0, 0]), positions)


@pytest.mark.parametrize("film", [3, 24, 30, 31, 80])
def test_frames_stand_at_the_same_times_counted_from_the_films_beginning_or_from_themselves(film: int) -> None:
    """As training counts, and as a film does."""
    times = torch.arange(film) + 0.5
    places = torch.stack([times, torch.zeros(film), torch.zeros(film)], dim=1)
    history = History(torch.zeros(1, film, 8), places, Modulation.CLEAN, torch.arange(FRAMES) + float(film))
    earlier = history._replace(positions=places - torch.tensor([film, 0, 0]), target_frames=None)
    trained, made = anchored(history, FRAMES), anchored(earlier, FRAMES)
    assert torch.equal(trained.positions, made.positions)
    assert trained.target_frames is not None
    assert made.target_frames is not None
    assert torch.equal(trained.target_frames, made.target_frames)


def test_clean_history_is_what_the_host_makes_of_a_clean_first_frame(scene: Scene) -> None:
    """The host's own way of image-to-video, where the first frame has a level of its own. Words stand at time 0, so times are the host's."""
    first = scene.older[:, :, :1]

    def behind_words(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        # The host counts from the first picture, but in its single layers words stand before it.
        assert args["modulation_dims"] == [(0, TOKENS, 0), (TOKENS, None, 1)]
        dims = [(0, WORDS, 1), (WORDS, WORDS + TOKENS, 0), (WORDS + TOKENS, None, 1)]
        made: dict[str, Any] = extra["original_block"]({**args, "modulation_dims": dims})
        return made

    options = {"patches_replace": {"dit": {("single_block", layer): behind_words for layer in range(2)}}}
    film = torch.cat([first, scene.x], dim=2)
    native = scene.run(film, options, guiding_frame_index=torch.tensor([0.0]))[:, :, 1:]
    later = torch.arange(FRAMES) + 1.0
    clean = scene.history(0, Modulation.CLEAN, frames=1)._replace(target_frames=later)
    joined = scene.joined(clean)
    assert relative_error(joined, native) < FORWARD_ERROR
    told_the_targets = scene.joined(clean._replace(modulation=Modulation.TARGET))
    assert relative_error(joined, told_the_targets) > NOT_ROUNDING
    assert relative_error(joined, scene.joined(clean._replace(target_frames=None))) > NOT_ROUNDING


def test_stretches_of_tokens_are_told_levels_of_their_own(scene: Scene) -> None:
    clean = scene.history(-OLDER, Modulation.CLEAN)
    parts = clean._replace(modulation=(Level(5, Modulation.CLEAN), Level(2 * TOKENS - 5, Modulation.CLEAN)))
    assert relative_error(scene.joined(parts), scene.joined(clean)) < FORWARD_ERROR
    target = clean._replace(modulation=(Level(5, Modulation.TARGET), Level(2 * TOKENS - 5, Modulation.TARGET)))
    assert torch.equal(scene.joined(target), scene.joined(clean._replace(modulation=Modulation.TARGET)))
    mixed = scene.joined(clean._replace(modulation=(Level(TOKENS, Modulation.CLEAN), Level(TOKENS, Modulation.TARGET))))
    assert relative_error(mixed, scene.joined(clean)) > NOT_ROUNDING
    assert relative_error(mixed, scene.joined(target)) > NOT_ROUNDING


def test_where_history_lies_in_time_and_space_matters(scene: Scene) -> None:
    near, far = scene.joined(scene.history(-OLDER)), scene.joined(scene.history(-OLDER - 9))
    assert relative_error(near, far) > NOT_ROUNDING


@pytest.mark.parametrize("modulation", Modulation)
def test_any_number_of_tokens_joins_any_batch(scene: Scene, modulation: Modulation) -> None:
    history = scene.history(-OLDER, modulation)
    odd = history._replace(
        tokens=history.tokens[:, :7],
        positions=history.positions[:7],
        prompts=((Stretch(7, words(9, 4)[0]),),),
        counts=torch.full((7,), 3.0),
    )
    made, alone = scene.twice().joined(odd), scene.joined(odd)
    assert made.shape == (2, 16, FRAMES, HEIGHT, WIDTH)
    assert all(relative_error(made[row : row + 1], alone) < FORWARD_ERROR for row in range(2))


@pytest.mark.parametrize("modulation", Modulation)
@pytest.mark.parametrize("masked", [False, True])
def test_a_token_that_counts_twice_is_read_as_two_of_it_are(scene: Scene, modulation: Modulation, masked: bool) -> None:
    mask = {"attention_mask": torch.tensor([[1] * (WORDS - 2) + [0] * 2])} if masked else {}
    once = scene.history(-OLDER, modulation)
    tokens, positions = torch.cat([once.tokens, once.tokens], dim=1), torch.cat([once.positions, once.positions])
    twice = once._replace(tokens=tokens, positions=positions)
    counted = once._replace(counts=torch.full((OLDER * TOKENS,), 2.0))
    made = scene.joined(counted, **mask)
    assert relative_error(made, scene.joined(twice, **mask)) < FORWARD_ERROR
    assert relative_error(made, scene.joined(once, **mask)) > NOT_ROUNDING


def test_words_that_a_prompt_masks_are_read_by_no_token_of_history(scene: Scene) -> None:
    mask = torch.tensor([[1] * (WORDS - 2) + [0] * 2])
    native = scene.run(torch.cat([scene.x, scene.older], dim=2), {}, attention_mask=mask)[:, :, :FRAMES]
    assert relative_error(scene.joined(scene.history(FRAMES), attention_mask=mask), native) < FORWARD_ERROR


@pytest.mark.parametrize("masked", [False, True])
def test_tokens_with_prompts_of_their_own_read_these_as_the_host_reads_its_own(
    scene: Scene, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The definition: the longer film with all prompts in one forward of the host's, and a mask that says who sees whom."""
    lengths = (WORDS, 4, 5)
    prompts = [words(seed, count) for seed, count in zip((1, 2, 3), lengths, strict=True)]
    live = torch.ones(WORDS, dtype=torch.bool)
    live[-2:] = not masked
    film = torch.cat([scene.x, scene.older], dim=2)
    refine = scene.network.txt_in.forward
    own_mask = {"attention_mask": live[None].int()} if masked else {}

    def each_alone(context: Tensor, timesteps: Tensor, mask: Tensor | None, **settings: Any) -> Tensor:
        refined = []
        for number, part in enumerate(context.split(lengths, dim=1)):
            told = torch.where(live, 0.0, torch.finfo(part.dtype).min)[None] if masked and number == 0 else None
            refined.append(refine(part, timesteps, told, **settings))
        return torch.cat(refined, dim=1)

    prompt_of_word = torch.arange(3).repeat_interleave(torch.tensor(lengths))
    # Stretches under the second prompt, that of the frames being made, the third, and the second again.
    counts = (10, 8, OLDER * TOKENS - 30, 12)
    prompt_of_token = torch.tensor([0, 1, 0, 2, 1]).repeat_interleave(torch.tensor((FRAMES * TOKENS, *counts)))
    prompt_of_all = torch.cat([prompt_of_word, prompt_of_token])
    sees_word = prompt_of_all[:, None] == prompt_of_word
    sees_word[:, :WORDS] &= live
    sees = torch.cat([sees_word, torch.ones(len(prompt_of_all), len(prompt_of_token), dtype=torch.bool)], dim=1)
    hidden = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)

    def seen(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **settings: Any) -> Tensor:
        # The refiner's sequence is a prompt alone.
        mask = hidden if q.shape[2] == len(hidden) else settings.get("mask")
        return attention(q, k, v, *args, **{**settings, "mask": mask})

    with monkeypatch.context() as patched:
        patched.setattr(scene.network.txt_in, "forward", each_alone)
        options = {"optimized_attention_override": seen}
        native = scene.run(film, options, context=torch.cat(prompts, dim=1))[:, :, :FRAMES]
    second, third = (prompt[0] for prompt in prompts[1:])
    read = tuple(Stretch(count, prompt) for count, prompt in zip(counts, (second, None, third, second), strict=True))
    history = scene.history(FRAMES)
    joined = scene.joined(history._replace(prompts=(read,)), **own_mask)
    assert relative_error(joined, native) < FORWARD_ERROR
    assert relative_error(joined, scene.joined(history, **own_mask)) > NOT_ROUNDING


@pytest.mark.parametrize("modulation", Modulation)
def test_a_prompts_one_vector_for_all_words_goes_with_its_words_and_tokens(
    scene: Scene, modulation: Modulation
) -> None:
    """Where all prompts are alike but for that vector: told to everybody it is the call's own, told to some it is neither's."""
    own, pooled = scene.given["y"], drawn(7, 1, CLIP_WIDTH)
    text = words(4, 4)[0]
    history = scene.history(-OLDER, modulation)

    def read(*vectors: Tensor | None) -> History:
        counts = (10, OLDER * TOKENS - 10)
        prompts = (text, text.clone())
        parts = [Stretch(count, prompt, vector) for count, prompt, vector in zip(counts, prompts, vectors, strict=True)]
        return history._replace(prompts=(tuple(parts),))

    silent = scene.joined(read(None, None))
    assert relative_error(scene.joined(read(own[0], own[0].clone())), silent) < FORWARD_ERROR
    told, one, other = (scene.joined(read(*each)) for each in ((pooled[0],) * 2, (pooled[0], None), (None, pooled[0])))
    assert min(relative_error(made, silent) for made in (told, one, other)) > NOT_ROUNDING
    assert min(relative_error(made, told) for made in (one, other)) > NOT_ROUNDING
    # The frames being made keep their own: with it changed for them as well, all are made under the other vector.
    everybody = scene.joined(read(None, None), y=pooled)
    assert relative_error(scene.joined(read(pooled[0], pooled[0]), y=pooled), everybody) < FORWARD_ERROR
    assert relative_error(told, everybody) > NOT_ROUNDING


def test_stretches_of_levels_and_prompts_are_crossed(scene: Scene) -> None:
    """Levels and vectors may change at different tokens."""
    pooled = drawn(7, 1, CLIP_WIDTH)[0]
    levels = (Level(30, Modulation.CLEAN), Level(2 * TOKENS - 30, Modulation.TARGET))
    prompts = (Stretch(10, words(4, 4)[0], pooled), Stretch(2 * TOKENS - 10, None))
    history = scene.history(-OLDER)._replace(modulation=levels, prompts=(prompts,))
    finer = (Level(10, Modulation.CLEAN), Level(20, Modulation.CLEAN), Level(2 * TOKENS - 30, Modulation.TARGET))
    made = scene.joined(history)
    assert relative_error(scene.joined(history._replace(modulation=finer)), made) < FORWARD_ERROR
    other = (Level(10, Modulation.CLEAN), Level(2 * TOKENS - 10, Modulation.TARGET))
    assert relative_error(scene.joined(history._replace(modulation=other)), made) > NOT_ROUNDING


def test_what_replaces_a_layer_already_is_called_with_the_longer_sequence(scene: Scene) -> None:
    seen: list[tuple[str, int, int]] = []

    def watching(kind: str) -> Callable[..., dict[str, Any]]:
        def watch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            seen.append((kind, args["img"].shape[1], args["pe"].shape[2]))
            made: dict[str, Any] = extra["original_block"](args)
            return made

        return watch

    places = [("double_block", 0), ("double_block", 1), ("single_block", 1)]
    replaced = {(kind, layer): watching(kind) for kind, layer in places}
    options = {"patches_replace": {"dit": dict(replaced), "other": {}}}
    history = scene.history(-OLDER, Modulation.CLEAN)
    watched = scene.joined(history, options)
    pictures = TOKENS * (FRAMES + OLDER)
    both = WORDS + pictures
    assert seen == [("double_block", pictures, both)] * 2 + [("single_block", both, both)]
    assert torch.equal(watched, scene.joined(history))
    assert options["patches_replace"]["dit"] == replaced


def test_attention_patches_of_another_pack_see_the_longer_sequence(scene: Scene) -> None:
    lengths: list[int] = []

    def watch(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> dict[str, Any]:
        lengths.append(q.shape[2])
        return {}

    history = scene.history(-OLDER)
    watched = scene.joined(history, {"patches": {"attn1_patch": [watch]}})
    assert lengths == [WORDS + TOKENS * (FRAMES + OLDER)] * (SPEC.double_layers + SPEC.single_layers)
    assert torch.equal(watched, scene.joined(history))


def test_an_attention_override_of_another_pack_is_asked_for_every_share(scene: Scene) -> None:
    seen: list[tuple[int, int]] = []

    def watch(attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **settings: Any) -> Tensor:
        seen.append((q.shape[2], k.shape[2]))
        made: Tensor = attention(q, k, v, *args, **settings)
        return made

    pictures = TOKENS * (FRAMES + OLDER)
    prompts = ((Stretch(TOKENS, words(4, 4)[0]), Stretch(TOKENS, None)),)
    history = scene.history(-OLDER)._replace(prompts=prompts)
    watched = scene.joined(history, {"optimized_attention_override": watch})
    layers = SPEC.double_layers + SPEC.single_layers
    shares = [(WORDS + TOKENS * (FRAMES + 1), WORDS + pictures), (4 + TOKENS, 4 + pictures)]
    refined = [(WORDS, WORDS), (4, 4)] * 2
    assert sorted(seen) == sorted(shares * layers + refined)
    assert torch.equal(watched, scene.joined(history))


def test_twenty_seconds_of_history_join_nine_frames_of_480p_at_the_real_width(host: object) -> None:
    """On a device without numbers, through a layer of each kind."""
    lengths: list[int] = []

    def measured(attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **settings: Any) -> Tensor:
        lengths.append(q.shape[2])
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    encoder = EncoderSpec(width=3072, modulation=Modulation.CLEAN)
    grid = encoder.grid(120, 60, 104)
    network: Any = new_hunyuan(TinyHunyuanSpec(width=128, double_layers=1, single_layers=1))
    with torch.device("meta"):
        network = type(network)(**{**vars(network.params), "hidden_size": 3072, "num_heads": 24}, operations=torch.nn)
        tokens = torch.empty(1, 5460, 3072)
        history = History(tokens, token_positions(encoder, grid, -120), Modulation.CLEAN)
        history = history._replace(prompts=((Stretch(5460, torch.empty(20, TEXT_WIDTH)),),), counts=torch.ones(5460))
        call = Call(torch.empty(1), torch.empty(1, CLIP_WIDTH), torch.empty(1))
        options = with_history(network, history, {"optimized_attention_override": measured}, call)
        given = {"y": call.pooled, "guidance": call.guidance, "transformer_options": options}
        made = network(torch.empty(1, 16, 9, 60, 104), call.timesteps, torch.empty(1, 256, TEXT_WIDTH), **given)
    assert made.shape == (1, 16, 9, 60, 104)
    assert sorted(lengths) == [20, 20, 256, 256, 20 + 5460, 20 + 5460, 256 + 14_040, 256 + 14_040]


@pytest.mark.parametrize(("key", "named"), sorted(OTHER_TOKENS.items()))
def test_what_else_would_lengthen_the_sequence_is_refused(key: str, named: str) -> None:
    check_alone({key: None}, OTHER_TOKENS)
    with pytest.raises(ValueError, match=f"combined with {named}.*disconnect the memory encoder"):
        check_alone({key: torch.zeros(1)}, OTHER_TOKENS)
