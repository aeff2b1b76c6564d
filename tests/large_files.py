"""Files of a Wan as ComfyUI users have them, tiny and with random weights: the host's own loaders recognise and load them."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import comfy.ops
import comfy.sd
import comfy.text_encoders.t5
import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor

from longreel.memory.film import write_segment
from longreel.nodes.host.build import TinyWanSpec, host_modules

SPEC = TinyWanSpec(width=128, layers=2, ffn=128, seed=3)
CAPTIONS = "0:00 anna waves\n0:03 ben jumps"
TEXT = {
    "d_ff": 8,
    "d_kv": 4,
    "d_model": 4096,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "umt5",
    "num_heads": 2,
    "num_layers": 1,
    "vocab_size": 64,
}
"""UMT5 XXL is the only text encoder that the host takes for a Wan; it is as wide, and a millionth of its size in all else."""


def write_wan(path: Path, spec: TinyWanSpec = SPEC, dtype: torch.dtype = torch.float32) -> Path:
    """A Wan 2.1 text-to-video model."""
    save_file({name: weight.to(dtype) for name, weight in host_modules().new_wan(spec).state_dict().items()}, path)
    return path


def write_vae(path: Path) -> Path:
    """A Wan 2.1 VAE, narrow."""
    save_file(host_modules().new_vae(8).state_dict(), path)
    return path


def write_text_encoder(path: Path, seed: int = 5) -> Path:
    """A UMT5 with the words of some letters, and the weight by which the host tells its size."""
    network = comfy.text_encoders.t5.T5(TEXT, torch.float32, "cpu", comfy.ops.disable_weight_init)
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, weight in network.state_dict().items():
        state[name] = torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5
    state["shared.weight"] = torch.randn(state["shared.weight"].shape, generator=generator)
    state["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] = torch.zeros(10240, 1)
    letters = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["anna waves", "ben jumps", "the quick brown fox"]),
        model_writer=letters,
        model_type="char",
        vocab_size=TEXT["vocab_size"],
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    state["spiece_model"] = torch.from_numpy(np.frombuffer(letters.getvalue(), dtype=np.uint8).copy())
    save_file(state, path)
    return path


def let_text_encoders_be_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads the shape of a UMT5 off a file of its own; its loader has an option for another."""
    options = {"umt5xxl_model_config": TEXT}
    monkeypatch.setattr(comfy.sd, "load_clip", partial(comfy.sd.load_clip, model_options=options))


def write_videos(folder: Path, count: int = 2, pictures: int = 133) -> Path:
    """Captioned videos of noise that moves slowly, each its own."""
    folder.mkdir()
    for number in range(count):
        drawn = np.random.default_rng(number)
        blocks = drawn.integers(0, 255, (pictures // 16 + 1, 4, 4, 3), dtype=np.uint8)
        video = blocks.repeat(16, 0)[:pictures].repeat(16, 1).repeat(16, 2)
        write_segment(folder / f"{number}.mp4", video, 16)
        (folder / f"{number}.txt").write_text(CAPTIONS, encoding="utf-8")
    return folder


def write_all(folder: Path) -> list[str]:
    """All three files; the options that name them."""
    files = {
        "--model": write_wan(folder / "tiny_wan.safetensors"),
        "--vae": write_vae(folder / "tiny_vae.safetensors"),
        "--text-encoder": write_text_encoder(folder / "tiny_umt5.safetensors"),
    }
    return [word for name, path in files.items() for word in (name, str(path))]
