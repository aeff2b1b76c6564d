"""One guider for the whole film: every shot's prompt goes in once, the chunk being made picks its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from ...memory.history_session import HistorySession
from ...memory.session import RunSession
from .keys import HISTORY, SESSION

NEGATIVE = "negative"
AROUND_THE_MODEL = (WrappersMP.CALC_COND_BATCH, WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL)


class FilmGuider(comfy.samplers.CFGGuider):
    """Guides each chunk by the conditioning of its shot, and commits it under the same one."""

    def __init__(self, model: ModelPatcher, shots: Sequence[Any], negative: Any, cfg: float) -> None:
        super().__init__(model)
        self.set_cfg(cfg)
        self.shot = 0
        self.chunk_shape: tuple[int, ...] = ()
        self.inner_set_conds({**{_key(index): shot for index, shot in enumerate(shots)}, NEGATIVE: negative})

    @property
    def streams(self) -> int:
        """Histories to keep: one for the prompt, and one for the negative when guidance needs it."""
        alone = self.cfg == 1.0 and not self.model_options.get("disable_cfg1_optimization", False)
        return 1 if alone else 2

    @property
    def prompts(self) -> list[Tensor]:
        """Token vectors `[W, C]` of each shot's prompt."""
        shots = (key for key in self.original_conds if key != NEGATIVE)
        return [self.original_conds[key][0]["cross_attn"][0] for key in shots]

    @property
    def pooled_prompts(self) -> list[Tensor | None]:
        """One vector `[P]` for all words of each shot's prompt, where it has one."""
        shots = [conds[0] for key, conds in self.original_conds.items() if key != NEGATIVE]
        pooled = [cond.get("pooled_output") for cond in shots]
        return [None if vector is None else vector[0] for vector in pooled]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(int(cond["cross_attn"].shape[1]) for conds in self.original_conds.values() for cond in conds)

    @property
    def masked_prompt(self) -> bool:
        """Whether a prompt says of some of its tokens that they are not to be read."""
        return any(cond.get("attention_mask") is not None for conds in self.original_conds.values() for cond in conds)

    @property
    def text_tokens(self) -> int:
        """Length of the longest prompt, or 0 where a hook or another pack may change prompts from step to step."""
        conds = [cond for conds in self.original_conds.values() for cond in conds]
        options = self.model_options
        changing = "model_function_wrapper" in options or "dit" in options["transformer_options"].get(
            "patches_replace", {}
        )
        wrapped = [get_all_wrappers(kind, options, is_model_options=True) for kind in AROUND_THE_MODEL]
        if changing or any(wrapped) or any("hooks" in cond for cond in conds):
            return 0
        return self.longest_prompt

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """Clean prediction for the chunk `x` `[1, C, T, H, W]` under the current shot's prompt."""
        out: Tensor = comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds[NEGATIVE],
            self.conds[_key(self.shot)],
            self.cfg,
            model_options=model_options or {},
            seed=seed,
        )
        return out

    @property
    def session(self) -> RunSession | HistorySession:
        """The run under way, remembered as keys and values or through an encoder."""
        options = self.model_options["transformer_options"]
        session: RunSession | HistorySession = options[HISTORY] if HISTORY in options else options[SESSION]
        return session

    @property
    def peak_bytes(self) -> int:
        """Bytes of the memory of the run, on the card."""
        return self.session.peak_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of the memory of the run in RAM or in files."""
        return self.session.host_bytes

    def reload(self) -> None:
        """Bring the model back onto its device, patched as before, after another model may have pushed it off."""
        options = self.model_options
        comfy.sampler_helpers.prepare_sampling(self.model_patcher, self.chunk_shape, self.conds, options)

    def commit(self, x: Tensor, model_options: dict[str, Any]) -> None:
        """Run the clean chunk `x` at t = 0 for every stream, past whatever changes guidance."""
        negative = self.conds[NEGATIVE] if self.streams == 2 else None
        conds = [self.conds[_key(self.shot)], negative]
        comfy.samplers.calc_cond_batch(self.inner_model, conds, x, x.new_zeros(x.shape[0]), model_options)


def _key(shot: int) -> str:
    return f"shot {shot}"
