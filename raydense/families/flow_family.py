"""What Stable Diffusion 3 and FLUX share: a transformer of a flow, and T5's states beside a pooled embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from raydense.families.family import ATTENTION, Evaluated, Family
from raydense.pipelines.pipeline_files import Part

TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class FlowFamily(Family):
    """Noisy by one of several dynamics, and judged by the ODE, which is noisy by none."""

    dynamics = ("cps", "flow-sde", "dance-sde")
    evaluated_dynamics = (*dynamics, "ode")
    evaluated = Evaluated("ode", 28)
    lora_targets = (*ATTENTION, *TEXT_STREAM)
    pooled_width: ClassVar[int]  # of the pooled embedding, where the transformer's file does not say
    pipelines_t5_tokens: ClassVar[int]  # diffusers' max_sequence_length

    @property
    def transformer(self) -> Part:
        """What its file says; empty where it is not known."""
        return self.files["transformer"] or {}

    @property
    def joint_width(self) -> int:
        """Of the states that the transformer attends to."""
        return int(self.transformer.get("joint_attention_dim", 4096))

    @property
    def t5_tokens(self) -> int:
        """Tokens of a prompt that the T5 reads, or zeros in their place."""
        return self.pipelines_t5_tokens if self._text_tokens is None else self._text_tokens

    @property
    def state_tokens(self) -> int:
        """Of all states together."""
        return self.t5_tokens

    @property
    def conditioning_shapes(self) -> Mapping[str, tuple[int, ...]]:
        pooled = int(self.transformer.get("pooled_projection_dim", self.pooled_width))
        return {"pooled_prompt_embeds": (pooled,), "prompt_embeds": (self.state_tokens, self.joint_width)}

    @property
    def conditioning_dtype(self) -> torch.dtype:
        return self._stored
