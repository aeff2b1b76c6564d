"""Files of a HunyuanVideo as ComfyUI users have them, tiny and with random weights: the host's own loaders recognise and load them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import comfy.clip_model
import comfy.ops
import comfy.sd
import comfy.text_encoders.llama
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from hunyuan_film import lively_network
from safetensors.torch import save_file
from torch import Tensor, nn

from longreel.nodes.host.build_hunyuan import TinyHunyuanSpec

SPEC = TinyHunyuanSpec(width=128, double_layers=1, single_layers=1, seed=3)
TEXT_WIDTH = 128
"""The host reads it off the model's weights, so a text encoder may be narrow, too; the vector for all words has six rows of it then."""
CLIP = {"num_hidden_layers": 2, "intermediate_size": 8}
LLAMA = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
"""What the host's own configurations of both become; its vocabularies stay, because its tokenizers do."""
VAE = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}


def write_hunyuan(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A HunyuanVideo text-to-video model with distilled guidance, whose layers have their say."""
    state = {name: weight.detach().to(dtype) for name, weight in lively_network(SPEC).state_dict().items()}
    for name in ("txt_in.input_embedder.weight", "txt_in.c_embedder.in_layer.weight"):
        state[name] = state[name][:, :TEXT_WIDTH].contiguous()
    save_file(state, path)
    return path


def write_hunyuan_vae(path: Path) -> Path:
    """HunyuanVideo's VAE, narrow."""
    channels = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3}
    shape = {**channels, "attn_resolutions": [], "dropout": 0.0, "conv3d": True, "time_compress": 4, **VAE}
    return _write(AutoencoderKL(ddconfig=shape, embed_dim=16), path, torch.float32)


def write_clip_l(path: Path) -> Path:
    """CLIP-L of two layers."""
    config = {"hidden_size": 768, "num_attention_heads": 12, "hidden_act": "quick_gelu", "max_position_embeddings": 77}
    settings = {**config, "eos_token_id": 49407, **CLIP}
    made = comfy.clip_model.CLIPTextModel(settings, torch.float16, "cpu", comfy.ops.disable_weight_init)
    return _write(made, path, torch.float16)


def write_llama(path: Path) -> Path:
    """Llama 3 of four layers; the host takes what comes out of the third from the end."""
    made = comfy.text_encoders.llama.Llama2(LLAMA, torch.float16, "cpu", comfy.ops.disable_weight_init)
    return _write(made, path, torch.float16)


def _write(network: nn.Module, path: Path, dtype: torch.dtype) -> Path:
    generator = torch.Generator().manual_seed(5)
    state: dict[str, Tensor] = {}
    for name, weight in network.state_dict().items():
        drawn = torch.rand(weight.shape, generator=generator).mul_(2).sub_(1)
        state[name] = (drawn if weight.ndim == 1 or "embed" in name else drawn / weight[0].numel() ** 0.5).to(dtype)
    save_file(state, path)
    return path


def let_hunyuan_files_be_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host knows the shapes of these files by heart: its loader of text encoders has an option for others, its VAE none."""
    options = {"model_config": CLIP, "llama_model_config": LLAMA}
    monkeypatch.setattr(comfy.sd, "load_clip", partial(comfy.sd.load_clip, model_options=options))

    class Narrow(AutoencoderKL):
        def __init__(self, ddconfig: dict[str, Any], embed_dim: int) -> None:
            super().__init__(ddconfig={**ddconfig, **VAE}, embed_dim=embed_dim)

    monkeypatch.setattr(comfy.sd, "AutoencoderKL", Narrow)


def write_all_of_hunyuan(folder: Path) -> list[str]:
    """All four files; the options that name them."""
    files = (
        ("--model", write_hunyuan(folder / "tiny_hunyuan.safetensors")),
        ("--vae", write_hunyuan_vae(folder / "tiny_vae.safetensors")),
        ("--text-encoder", write_llama(folder / "tiny_llama.safetensors")),
        ("--text-encoder", write_clip_l(folder / "tiny_clip_l.safetensors")),
    )
    return [word for name, path in files for word in (name, str(path))]
