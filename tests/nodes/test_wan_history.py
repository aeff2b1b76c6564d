"""History joins the host's own Wan: what the host computes for frames joined in time is the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from numerics import FORWARD_ERROR, NOT_ROUNDING, relative_error
from torch import Tensor

from longreel.memory.encoded_history import History, Level, Stretch
from longreel.memory.encoder import token_positions
from longreel.memory.encoder_spec import EncoderSpec, Modulation, Rate
from longreel.nodes.host.build import TinyWanSpec, host_modules
from longreel.nodes.host.history_family import check_alone
from longreel.nodes.host.wan_history import OTHER_TOKENS, with_history

SPEC = TinyWanSpec(width=256, layers=3, ffn=512, seed=3)
FRAMES, OLDER, HEIGHT, WIDTH = 3, 2, 12, 16
TOKENS = HEIGHT * WIDTH // 4


@dataclass(frozen=True)
class Scene:
    """A host model, frames that it denoises, older ones, and a prompt."""

    network: Any
    x: Tensor
    older: Tensor
    text: Tensor

    def history(self, modulation: Modulation, first_frame: float = FRAMES) -> History:
        tokens = self.network.patch_embedding(self.older).flatten(2).transpose(1, 2)
        frames, rows, columns = torch.arange(OLDER) + first_frame, torch.arange(HEIGHT // 2), torch.arange(WIDTH // 2)
        return History(tokens, torch.cartesian_prod(frames.float(), rows.float(), columns.float()), modulation)

    def run(self, t: Tensor, options: dict[str, Any], **inputs: Any) -> Tensor:
        with torch.inference_mode():
            return self.network(self.x, t, self.text, transformer_options=options, **inputs)


def same(level: float, frames: int = 1, batch: int = 1) -> Tensor:
    return torch.full((batch, frames), level)


@pytest.fixture(scope="module")
def scene(host: object) -> Scene:
    generator = torch.Generator().manual_seed(0)
    network = host_modules().new_wan(SPEC).requires_grad_(False).eval()
    x, older = (torch.randn(1, 16, frames, HEIGHT, WIDTH, generator=generator) for frames in (FRAMES, OLDER))
    return Scene(network, x, older, torch.randn(1, 5, 4096, generator=generator))


def test_history_under_the_targets_level_is_what_the_host_makes_of_frames_joined_in_time(scene: Scene) -> None:
    native = scene.run(same(500.0), {}, time_dim_concat=scene.older)
    joined = scene.run(same(500.0), with_history(scene.network, scene.history(Modulation.TARGET), {}))
    assert relative_error(joined, native) < FORWARD_ERROR
    assert relative_error(joined, scene.run(same(500.0), {})) > NOT_ROUNDING


def test_clean_history_is_what_the_host_makes_of_joined_frames_with_a_level_of_their_own(scene: Scene) -> None:
    levels = torch.cat([same(500.0, FRAMES), same(0.0, OLDER)], dim=1)
    native = scene.run(levels, {}, time_dim_concat=scene.older)
    history = scene.history(Modulation.CLEAN)
    joined = scene.run(same(500.0), with_history(scene.network, history, {}))
    assert relative_error(joined, native) < FORWARD_ERROR
    assert relative_error(joined, scene.run(same(500.0), {}, time_dim_concat=scene.older)) > NOT_ROUNDING


@pytest.mark.parametrize(("modulation", "level"), [(Modulation.TARGET, 300.0), (Modulation.CLEAN, 0.0)])
def test_every_frame_may_have_a_level_of_its_own(scene: Scene, modulation: Modulation, level: float) -> None:
    own = torch.tensor([[900.0, 600.0, 300.0]])
    native = scene.run(torch.cat([own, same(level, OLDER)], dim=1), {}, time_dim_concat=scene.older)
    joined = scene.run(own, with_history(scene.network, scene.history(modulation), {}))
    assert relative_error(joined, native) < FORWARD_ERROR


def test_only_the_distance_in_time_counts(scene: Scene) -> None:
    before = scene.history(Modulation.TARGET, first_frame=-OLDER)
    shifted = before._replace(positions=before.positions + torch.tensor([100.0, 0.0, 0.0]))
    near = scene.run(same(500.0), with_history(scene.network, before, {}))
    far = shifted._replace(target_frames=torch.arange(FRAMES) + 100.0)
    moved = scene.run(same(500.0), with_history(scene.network, far, {}))
    assert relative_error(moved, near) < FORWARD_ERROR
    elsewhere = scene.run(same(500.0), with_history(scene.network, shifted, {}))
    assert relative_error(elsewhere, near) > NOT_ROUNDING


def test_a_token_at_several_places_is_turned_by_the_mean_of_their_rotations(scene: Scene) -> None:
    """At the same place twice it is as at one; at two places it is as at neither."""
    history = scene.history(Modulation.TARGET)
    there, elsewhere = history.positions, history.positions + torch.tensor([0.0, 2.0, 0.0])
    one, other = (
        scene.run(same(500.0), with_history(scene.network, history._replace(positions=positions), {}))
        for positions in (there, elsewhere)
    )
    twice = history._replace(positions=torch.stack([there, there]))
    assert torch.equal(scene.run(same(500.0), with_history(scene.network, twice, {})), one)
    both = history._replace(positions=torch.stack([there, elsewhere]))
    made = scene.run(same(500.0), with_history(scene.network, both, {}))
    assert min(relative_error(made, one), relative_error(made, other)) > NOT_ROUNDING


def test_frames_being_made_need_not_be_neighbours(scene: Scene) -> None:
    history = scene.history(Modulation.TARGET, first_frame=-OLDER)
    spread = history._replace(target_frames=torch.tensor([0.0, 4.0, 9.0]))
    plain = history._replace(target_frames=torch.arange(FRAMES).float())
    usual = scene.run(same(500.0), with_history(scene.network, history, {}))
    assert torch.equal(scene.run(same(500.0), with_history(scene.network, plain, {})), usual)
    assert relative_error(scene.run(same(500.0), with_history(scene.network, spread, {})), usual) > NOT_ROUNDING


def test_the_users_rope_options_move_history_as_they_move_the_film(scene: Scene) -> None:
    options = {"rope_options": {"scale_t": 0.5, "shift_t": 7.0, "scale_y": 2.0, "shift_x": 3.0}}
    native = scene.run(same(500.0), options, time_dim_concat=scene.older)
    # The host scales from the first frame to the last of the sequence it is given, which is the same line.
    joined = scene.run(same(500.0), with_history(scene.network, scene.history(Modulation.TARGET), options))
    assert relative_error(joined, native) < FORWARD_ERROR


@pytest.mark.parametrize("modulation", Modulation)
def test_any_number_of_tokens_joins_any_batch(scene: Scene, modulation: Modulation) -> None:
    history = scene.history(modulation)
    odd = history._replace(tokens=history.tokens[:, :7], positions=history.positions[:7])
    both = Scene(scene.network, scene.x.expand(2, -1, -1, -1, -1), scene.older, scene.text.expand(2, -1, -1))
    made = both.run(same(500.0, batch=2), with_history(scene.network, odd, {}))
    alone = scene.run(same(500.0), with_history(scene.network, odd, {}))
    assert made.shape == (2, 16, FRAMES, HEIGHT, WIDTH)
    assert all(relative_error(made[row : row + 1], alone) < FORWARD_ERROR for row in range(2))


def test_what_replaces_a_layer_already_is_called_with_the_longer_sequence(scene: Scene) -> None:
    seen: list[tuple[int, int]] = []

    def watch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        seen.append((args["img"].shape[1], args["pe"].shape[1]))
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", layer): watch for layer in (0, 2)}, "other": {}}}
    history = scene.history(Modulation.TARGET)
    watched = scene.run(same(500.0), with_history(scene.network, history, options))
    assert seen == [(TOKENS * (FRAMES + OLDER),) * 2] * 2
    assert torch.equal(watched, scene.run(same(500.0), with_history(scene.network, history, {})))
    assert options["patches_replace"]["dit"] == {("double_block", 0): watch, ("double_block", 2): watch}


def words(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4096, generator=torch.Generator().manual_seed(seed))


def test_history_that_reads_the_prompt_of_the_frames_being_made_as_its_own_is_as_before(scene: Scene) -> None:
    history = scene.history(Modulation.CLEAN)
    text = scene.text[0]
    for parts in ((OLDER * TOKENS,), (7, OLDER * TOKENS - 7)):
        own = history._replace(prompts=(tuple(Stretch(count, text) for count in parts),))
        made = scene.run(same(500.0), with_history(scene.network, own, {}))
        assert relative_error(made, scene.run(same(500.0), with_history(scene.network, history, {}))) < FORWARD_ERROR


@pytest.mark.parametrize("count", [2, TOKENS * (FRAMES + OLDER) - 5])
def test_every_film_of_a_batch_reads_prompts_of_its_own(scene: Scene, count: int) -> None:
    """The second length makes as many words as there are tokens, which must not be taken for self-attention."""
    history = scene.history(Modulation.CLEAN)
    films = (
        (Stretch(TOKENS, words(count, 1)), Stretch(TOKENS, words(3, 2))),
        (Stretch(30, words(3, 3)), Stretch(2 * TOKENS - 30, words(count, 4))),
    )
    alone = [
        scene.run(same(500.0), with_history(scene.network, history._replace(prompts=(film,)), {})) for film in films
    ]
    assert relative_error(alone[0], alone[1]) > NOT_ROUNDING
    pair = Scene(scene.network, scene.x.expand(2, -1, -1, -1, -1), scene.older, scene.text.expand(2, -1, -1))
    both = pair.run(same(500.0, batch=2), with_history(scene.network, history._replace(prompts=films), {}))
    shared = pair.run(same(500.0, batch=2), with_history(scene.network, history._replace(prompts=films[:1]), {}))
    for row in range(2):
        assert relative_error(both[row : row + 1], alone[row]) < FORWARD_ERROR
        assert relative_error(shared[row : row + 1], alone[0]) < FORWARD_ERROR


def test_stretches_of_tokens_are_told_levels_of_their_own(scene: Scene) -> None:
    """The host itself gives every frame a level; here the older one is told that of the frames being made."""
    levels = torch.tensor([[500.0] * (FRAMES + 1) + [0.0]])
    native = scene.run(levels, {}, time_dim_concat=scene.older)
    history = scene.history(Modulation.CLEAN)
    both = (Level(TOKENS, Modulation.TARGET), Level(TOKENS, Modulation.CLEAN))
    joined = scene.run(same(500.0), with_history(scene.network, history._replace(modulation=both), {}))
    assert relative_error(joined, native) < FORWARD_ERROR
    odd = (Level(7, Modulation.CLEAN), Level(2 * TOKENS - 7, Modulation.CLEAN))
    one = scene.run(same(500.0), with_history(scene.network, history, {}))
    again = scene.run(same(500.0), with_history(scene.network, history._replace(modulation=odd), {}))
    assert relative_error(again, one) < FORWARD_ERROR


@pytest.mark.parametrize("count", [1, 43, 60, 91, 95])
@pytest.mark.parametrize("levels", [1, FRAMES])
def test_history_of_any_length_is_told_its_level_in_few_stretches(scene: Scene, count: int, levels: int) -> None:
    """The reference has one for every token."""
    history = scene.history(Modulation.CLEAN)
    history = history._replace(tokens=history.tokens[:, :count], positions=history.positions[:count])
    told: list[int] = []

    def look(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        told.append(args["vec"].shape[1])
        made: dict[str, Any] = extra["original_block"](args)
        return made

    def one_each(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        own, theirs = FRAMES * TOKENS, args["vec"][:, -1:].expand(-1, count, -1, -1)
        each = args["vec"][:, :1].expand(-1, own, -1, -1)
        made: dict[str, Any] = extra["original_block"]({**args, "vec": torch.cat([each, theirs], dim=1)})
        return made

    looking, exact = (
        {"patches_replace": {"dit": {("double_block", layer): watch for layer in range(SPEC.layers)}}}
        for watch in (look, one_each)
    )
    level = same(500.0, levels)
    made, wanted = (scene.run(level, with_history(scene.network, history, each)) for each in (looking, exact))
    assert relative_error(made, wanted) < FORWARD_ERROR
    assert 8 * max(told) < FRAMES * TOKENS + count


def test_a_stretch_without_a_prompt_reads_that_of_the_frames_being_made(scene: Scene) -> None:
    """In every film of a batch, between stretches that have their own."""
    history = scene.history(Modulation.CLEAN)
    text = scene.text[0]
    films = [
        (Stretch(7, words(4, 1)), Stretch(TOKENS, prompt), Stretch(TOKENS - 7, words(3, 2))) for prompt in (None, text)
    ]
    made = [
        scene.run(same(500.0), with_history(scene.network, history._replace(prompts=(film,)), {})) for film in films
    ]
    assert relative_error(made[0], made[1]) < FORWARD_ERROR
    pair = Scene(scene.network, scene.x.expand(2, -1, -1, -1, -1), scene.older, scene.text.expand(2, -1, -1))
    both = pair.run(same(500.0, batch=2), with_history(scene.network, history._replace(prompts=tuple(films)), {}))
    assert all(relative_error(both[row : row + 1], made[0]) < FORWARD_ERROR for row in range(2))


@pytest.mark.parametrize("modulation", Modulation)
@pytest.mark.parametrize("prompts", [False, True])
def test_a_token_that_counts_twice_is_read_as_two_of_it_are(
    scene: Scene, modulation: Modulation, prompts: bool
) -> None:
    once = scene.history(modulation)
    if prompts:
        once = once._replace(prompts=((Stretch(2 * TOKENS, words(4, 1)),),))
    tokens, positions = torch.cat([once.tokens, once.tokens], dim=1), torch.cat([once.positions, once.positions])
    twice = once._replace(tokens=tokens, positions=positions, prompts=once.prompts and (once.prompts[0] * 2,))
    counted = once._replace(counts=torch.full((2 * TOKENS,), 2.0))
    made = scene.run(same(500.0), with_history(scene.network, counted, {}))
    assert relative_error(made, scene.run(same(500.0), with_history(scene.network, twice, {}))) < FORWARD_ERROR
    assert relative_error(made, scene.run(same(500.0), with_history(scene.network, once, {}))) > NOT_ROUNDING


def test_own_prompts_reach_their_tokens_and_no_other(scene: Scene) -> None:
    """Through one layer the frames being made cannot tell: they read history before it has read its prompts."""
    network = host_modules().new_wan(TinyWanSpec(width=256, layers=1, ffn=512, seed=3)).requires_grad_(False).eval()
    single = Scene(network, scene.x, scene.older, scene.text)
    history = single.history(Modulation.CLEAN)
    films = [((Stretch(OLDER * TOKENS, words(4, seed)),),) for seed in (1, 2)]
    made = [single.run(same(500.0), with_history(network, history._replace(prompts=film), {})) for film in films]
    assert relative_error(made[0], made[1]) < FORWARD_ERROR
    assert relative_error(made[0], single.run(same(500.0), with_history(network, history, {}))) < FORWARD_ERROR


def test_an_attention_override_of_another_pack_is_asked_for_every_share(scene: Scene) -> None:
    seen: list[tuple[int, int]] = []

    def watch(attention: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, **settings: Any) -> Tensor:
        seen.append((q.shape[1], k.shape[1]))
        made: Tensor = attention(q, k, v, heads, **settings)
        return made

    prompts = ((Stretch(TOKENS, words(4, 1)), Stretch(TOKENS, words(6, 2))),)
    history = scene.history(Modulation.CLEAN)._replace(prompts=prompts)
    options = {"optimized_attention_override": watch}
    watched = scene.run(same(500.0), with_history(scene.network, history, options))
    everybody = TOKENS * (FRAMES + OLDER)
    shares = [(everybody, everybody), (TOKENS * FRAMES, 5), (TOKENS, 4), (TOKENS, 6)]
    assert sorted(seen) == sorted(shares * SPEC.layers)
    assert torch.equal(watched, scene.run(same(500.0), with_history(scene.network, history, {})))


def test_tokens_of_an_encoder_change_what_is_made(scene: Scene) -> None:
    spec = EncoderSpec(width=SPEC.width, rate=Rate(2, 2, 2))
    positions = token_positions(spec, spec.grid(4, HEIGHT, WIDTH), first_frame=-4)
    tokens = torch.randn(1, len(positions), SPEC.width, generator=torch.Generator().manual_seed(5))
    joined = scene.run(same(500.0), with_history(scene.network, History(tokens, positions, Modulation.CLEAN), {}))
    assert torch.isfinite(joined).all()
    assert relative_error(joined, scene.run(same(500.0), {})) > NOT_ROUNDING


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("context_latents", "context latents"),
        ("reference_latent", "a reference latent"),
        ("time_dim_concat", "frames joined in time"),
    ],
)
def test_other_tokens_at_the_same_time_are_refused(key: str, named: str) -> None:
    check_alone({key: None}, OTHER_TOKENS)
    with pytest.raises(ValueError, match=f"combined with {named}.*disconnect the memory encoder"):
        check_alone({key: torch.zeros(1)}, OTHER_TOKENS)
