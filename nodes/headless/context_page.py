"""The page `memory/training/ENCODER_COST.md`: what `bench_context.py` counted, as tables. Import it after `boot_host`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...memory.encoder_spec import RATES, Rate
from .bench_context import (
    LORA_RANK,
    SECONDS,
    SEGMENT_FRAMES,
    TRAINED_BYTES,
    WINDOW_FRAMES,
    Cost,
    EncoderCost,
    TrainingCost,
    call_cost,
    encoder_cost,
    tokens_of,
    training_cost,
)
from .large_models import BF16, LARGE_MODELS, LargeModel

CARDS = {"A100": 312e12, "H100": 989e12}
"""Operations a second in bf16 that the data sheets promise, for cards of 80 GB."""
UTILISATION = 0.4
STEPS = 1000
EVERYTHING = "everything"
ABOUT = f"""# What a memory encoder takes at real sizes

`longreel bench context --out memory/training/ENCODER_COST.md` writes this page in some minutes of one core. **Nothing here is a measured time,
and no large model was trained or run**: the encoder's own module and ComfyUI's own networks are run with real shapes on PyTorch's meta device, where
tensors have no numbers. Lengths are those of the tensors that come out; operations are those of all matrix products, a
multiplication and an addition counted as two; bytes are those that autograd keeps.

A film is made {SEGMENT_FRAMES} latent frames at a time, beside its history: *{EVERYTHING}* is every older frame in the model's own tokens, a
rate is the encoder's tokens and a window of {WINDOW_FRAMES} whole frames. A picture's rows and columns are divided by the rate and rounded down, so
a rate of 4x4x2 may make less than a 32nd: 480 rows are 30 tokens high, and 7 of the encoder's.
"""
TRAINING = f"""
## Training

Arithmetic for one clip a step at 480x832 and 4x4x2: {SECONDS[0]} s of history are encoded; stage I makes {SEGMENT_FRAMES} of its frames, stage II the next
{SEGMENT_FRAMES} beside a window of {WINDOW_FRAMES}. A LoRA of rank {LORA_RANK} is on every matrix of every layer, as peft makes it: its weights, like those of the
encoder, in float32, and {TRAINED_BYTES} bytes each (weight, gradient, AdamW's two means). The model stays as it is, in bf16. Layers are run again on the
way back (gradient checkpointing), so of each layer only what goes in is kept, and all of one. Latents and prompts are read
from disk, where both were made before; VAE and text encoder are not on the card. What lives for a moment comes on top: leave a tenth
of the card free.
"""
HOURS = f"""
Operations are forward twice, backward once and three times the encoder. Hours are those operations at {UTILISATION:.0%} of what a card's data sheet
promises ({", ".join(f"{name} {speed / 1e12:.0f}" for name, speed in CARDS.items())} TFLOP/s in bf16): an assumption, usual for large networks, not a measurement.
"""


def counted_page(peft: Any) -> str:
    """Count everything, and write it as Markdown. `peft` is the package."""
    networks = [(model, model.network()) for model in LARGE_MODELS]
    calls = [call_cost(model, network) for model, network in networks]
    parts = [ABOUT]
    for (model, network), call in zip(networks, calls, strict=True):
        parts.append(
            f"\n## {model.name}\n\nTokens of history, and what a step takes of what it takes with everything:\n\n"
        )
        parts.append(context_table(model, network, call))
    parts.append(
        "\n## A step in numbers\n\nPFLOP of one call at the smaller picture (cfg above 1 makes two calls):\n\n"
    )
    parts.append(calls_table(networks, calls))
    parts.append("\n## The encoder\n\nAt the smaller picture; a second of film is encoded once.\n\n")
    encoders = {(model.name, rate): encoder_cost(model, network, rate) for model, network in networks for rate in RATES}
    parts.append(encoder_table(encoders))
    parts.append(TRAINING)
    costs = [training_cost(peft, model) for model in LARGE_MODELS]
    parts.append("\n" + memory_table(networks, costs, encoders))
    parts.append(HOURS)
    parts.append("\n" + hours_table(networks, costs, encoders))
    return "".join(parts)


def context_table(model: LargeModel, network: Any, call: Cost) -> str:
    """For every picture and rate: tokens, their share, and shares of self-attention and of all operations."""
    times = [f"{seconds} s" for seconds in SECONDS]
    heads = ["picture", "history", *times, "tokens", *(f"attention {t}" for t in times), *(f"step {t}" for t in times)]
    return table(heads, _context_rows(model, network, call))


def _context_rows(model: LargeModel, network: Any, call: Cost) -> Iterator[list[str]]:
    for size in model.sizes:
        picture = f"{size[0]}x{size[1]}"
        whole = [model.frame_tokens(size) * model.frames(seconds) for seconds in SECONDS]
        yield [picture, EVERYTHING, *(f"{tokens:,}" for tokens in whole), *["100 %"] * (1 + 2 * len(SECONDS))]
        made = model.frame_tokens(size) * SEGMENT_FRAMES
        for rate in RATES:
            told = [tokens_of(model, network, rate, size, seconds) for seconds in SECONDS]
            window = model.frame_tokens(size) * WINDOW_FRAMES
            joined = [(made + window + few, made + many) for few, many in zip(told, whole, strict=True)]
            words = model.joined_words
            attention = [share(call.attention(few + words), call.attention(many + words)) for few, many in joined]
            step = [share(call.of(few), call.of(many)) for few, many in joined]
            yield [picture, str(rate), *(f"{t:,}" for t in told), share(told[-1], whole[-1]), *attention, *step]


def calls_table(networks: Sequence[tuple[LargeModel, Any]], calls: Sequence[Cost]) -> str:
    """Operations of a call without history, beside an encoder of 4x4x2, and beside everything."""
    heads = ["model", "no history", *(f"{RATES[0]} {t} s" for t in SECONDS), *(f"{EVERYTHING} {t} s" for t in SECONDS)]
    rows = []
    for (model, network), call in zip(networks, calls, strict=True):
        size = model.sizes[0]
        frame = model.frame_tokens(size)
        told = [tokens_of(model, network, RATES[0], size, seconds) + WINDOW_FRAMES * frame for seconds in SECONDS]
        whole = [frame * model.frames(seconds) for seconds in SECONDS]
        lengths = [SEGMENT_FRAMES * frame + history for history in (0, *told, *whole)]
        rows.append([model.name, *(peta(call.of(tokens)) for tokens in lengths)])
    return table(heads, rows)


def encoder_table(encoders: dict[tuple[str, Rate], EncoderCost]) -> str:
    """Weights, bytes and operations of every encoder."""
    rows = [
        [
            name,
            str(rate),
            f"{cost.weights / 1e6:.1f} M",
            f"{cost.weights * BF16.itemsize / 1e6:.0f} MB",
            f"{cost.second / 1e9:.0f}",
        ]
        for (name, rate), cost in encoders.items()
    ]
    return table(["model", "rate", "weights", "file in bf16", "GFLOP for a second of film"], rows)


def memory_table(
    networks: Sequence[tuple[LargeModel, Any]],
    costs: Sequence[TrainingCost],
    encoders: dict[tuple[str, Rate], EncoderCost],
) -> str:
    """What a card holds in a step of stage II."""
    heads = [
        "model",
        "its weights",
        "LoRA",
        "encoder",
        "both, trained",
        "tokens",
        "kept of layers",
        "of one",
        "of the encoder",
    ]
    rows = []
    for (model, network), cost in zip(networks, costs, strict=True):
        encoder = encoders[model.name, RATES[0]]
        tokens, layers = sequence(model, network, WINDOW_FRAMES), sum(model.layers)
        held = [
            cost.weights * BF16.itemsize,
            (cost.trained + encoder.weights) * TRAINED_BYTES,
            tokens * model.width * BF16.itemsize * layers,
            tokens * cost.token_bytes / layers,
            encoder.kept_bytes,
        ]
        told = [gigabytes(part) for part in held]
        row = [model.name, told[0], f"{cost.trained / 1e6:.0f} M", f"{encoder.weights / 1e6:.0f} M", told[1]]
        without = gigabytes(tokens * cost.token_bytes)
        rows.append([*row, f"{tokens:,}", *told[2:], f"**{gigabytes(sum(held))}**", without])
    return table([*heads, "together", "kept of layers without checkpointing"], rows)


def hours_table(
    networks: Sequence[tuple[LargeModel, Any]],
    costs: Sequence[TrainingCost],
    encoders: dict[tuple[str, Rate], EncoderCost],
) -> str:
    """Operations of a clip, and hours of a card for many."""
    heads = ["model", "stage", "tokens", "PFLOP a clip", *(f"{STEPS:,} clips on an {card}" for card in CARDS)]
    rows = []
    for (model, network), cost in zip(networks, costs, strict=True):
        for stage, window in (("I", 0), ("II", WINDOW_FRAMES)):
            tokens = sequence(model, network, window)
            taken = 2 * cost.forward.of(tokens) + cost.backward.of(tokens)
            taken += 3 * SECONDS[0] * encoders[model.name, RATES[0]].second
            hours = [f"{STEPS * taken / speed / UTILISATION / 3600:.1f} h" for speed in CARDS.values()]
            rows.append([model.name, stage, f"{tokens:,}", peta(taken), *hours])
    return table(heads, rows)


def sequence(model: LargeModel, network: Any, window: int) -> int:
    """Tokens of a step of training at 4x4x2: the frames to make, those of the window, and the history."""
    size = model.sizes[0]
    return (SEGMENT_FRAMES + window) * model.frame_tokens(size) + tokens_of(model, network, RATES[0], size, SECONDS[0])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def share(part: float, whole: float) -> str:
    """A percentage with two digits that count."""
    percent = 100 * part / whole
    digits = 0 if percent >= 9.95 else 1 if percent >= 0.995 else 2
    return f"{percent:.{digits}f} %"


def peta(operations: float) -> str:
    """10^15 operations, with two digits behind the point."""
    return f"{operations / 1e15:,.2f}"


def gigabytes(count: float) -> str:
    """10^9 bytes."""
    return f"{count / 1e9:.1f} GB"
