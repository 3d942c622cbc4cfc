"""Loss and gradient of a seeded U-Net on seeded trajectories, as they were when the maths was last reviewed.

A refactor must reproduce `golden.safetensors`. Where a change of the numbers is meant, write it anew with

    python tests/golden/make_golden.py

and say in the changelog why they changed. Nothing here comes from a library's own initialisation: every weight is
drawn by NumPy from its own name, so that a new torch or diffusers changes nothing. The trajectories, whose bits would
be those of one machine's rollout, are stored in the file too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from safetensors.numpy import save_file

from actors.sampler import rollout
from learner.batching import BatchDraws
from learner.objective import batch_metrics, preference_loss
from learner.references import ReferenceCache
from learner.transitions import gather_transitions
from raydense.core.types import PolicyWeights, TrajectoryGroup
from raydense.diffusion.kernel import make_schedule
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated
from raydense.families.known import family_of
from raydense.families.text import TextEncoder
from raydense.pipelines.pipeline_files import PipelineFiles

FILE = Path(__file__).with_name("golden.safetensors")
STEPS = 10
PROMPTS = ("a cat", "a dog")
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
PLAN = BatchDraws(
    groups=torch.tensor([0, 1]),
    trajectories=torch.tensor([[0, 2, 1], [2, 1, 0]]),
    steps=torch.tensor([[0, 9, 4], [6, 1, 1]]),  # not 8: METHOD §9, it would multiply float32's noise by 8
    tie_noise=torch.tensor([[0.1, 0.2, 0.3], [0.6, 0.5, 0.4]]),
)
CASES: dict[str, dict[str, Any]] = {
    "pi_init": {"clip": 0.05, "references": ["initial"]},
    "pi_old": {"clip": 0.05, "references": ["old"]},
    "both": {"clip": 1.0, "references": ["initial", "old"]},
    "warm_up": {"clip": 0.05, "references": []},
}


def draws(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Normal values that are a function of the name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return (scale * np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)).astype(np.float32)


class CharacterEmbedding:
    """A text encoder and its tokenizer in one: an embedding a character."""

    model_max_length = 8
    device = torch.device("cpu")
    table = torch.from_numpy(draws("text", (128, 16)))

    def __call__(self, text: Any, **_: Any) -> Any:
        if isinstance(text, str):
            codes = [ord(c) for c in text.ljust(self.model_max_length)][: self.model_max_length]
            return SimpleNamespace(input_ids=torch.tensor([codes]))
        return (self.table[text],)

    def requires_grad_(self, _: bool) -> CharacterEmbedding:
        return self

    def eval(self) -> CharacterEmbedding:
        return self


def make_policy() -> Policy:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if parameter.ndim == 1:  # norms and biases
                parameter.copy_(torch.from_numpy(draws(name, parameter.shape, 0.1) + ("norm" in name) * 1.0))
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.from_numpy(draws(name, parameter.shape, fan_in**-0.5)))
    text = CharacterEmbedding()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=targets)
    files = PipelineFiles("golden", parts={"unet": unet.config, "text_encoder": {}, "tokenizer": {}})
    family = family_of(files, guidance_scale=3.0)
    texts = {"text_encoder": TextEncoder(text, text)}
    return Policy(family, unet, texts, None, make_schedule(SCHEDULER, STEPS, 1.0), lora, seed=0)


def bind(policy: Policy, which: str) -> None:
    """Gives the LoRA the values of the `old` policy, which made the trajectories, or of the `new` one."""
    scale = {"old": 0.03, "new": 0.04}[which]
    tensors = {
        name: draws(name, array.shape, 0.5) if "lora_A" in name else draws(f"{which} {name}", array.shape, scale)
        for name, array in policy.weights().tensors.items()
    }
    policy.bind(PolicyWeights.of(1, tensors))


def roll_out(policy: Policy) -> dict[str, np.ndarray]:
    """Trajectories of the old policy, for the file."""
    bind(policy, "old")
    result = {}
    for index, prompt in enumerate(PROMPTS):
        noise = torch.from_numpy(draws(f"noise {index}", (3, STEPS + 1, 4, 8, 8)))
        latents, log_probs = rollout(policy, noise, repeated(policy.encode(prompt), 3), torch.float16)
        result[f"input/{index}/latents"] = latents.numpy()
        result[f"input/{index}/log_probs"] = log_probs.numpy()
    return result


def make_group(policy: Policy, index: int, inputs: Mapping[str, np.ndarray]) -> TrajectoryGroup:
    return TrajectoryGroup(
        stage=0,
        index=index,
        prompt=PROMPTS[index],
        conditioning={name: tensor.numpy() for name, tensor in policy.encode(PROMPTS[index]).items()},
        latents=inputs[f"input/{index}/latents"],
        log_probs=inputs[f"input/{index}/log_probs"],
        rewards=np.array([[0.3, 0.1, 0.2], [0.5, 0.5, 0.7]], np.float32)[index],  # the second has a tie
        weights_version=0,
        weights_checksum="",
    )


def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By case: the loss of each tuple, its metrics, and the gradient of every LoRA tensor."""
    policy = make_policy()
    bind(policy, "new")
    batch = gather_transitions(PLAN, [make_group(policy, i, inputs) for i in range(len(PROMPTS))])
    result: dict[str, np.ndarray] = {}
    initial = ReferenceCache(policy, len(PROMPTS), keep=3).look_up(batch)
    log_probs = {"initial": initial, "old": batch.old_log_probs}
    for case, options in CASES.items():
        policy.network.zero_grad(set_to_none=True)
        references = [log_probs[name] for name in options["references"]]
        loss, values = preference_loss(policy, batch, references, c=10.0, clip=options["clip"], ties="random")
        metrics = batch_metrics({name: value.numpy() for name, value in values.items()})
        loss.mean().backward()
        result[f"{case}/loss"] = loss.detach().numpy()
        for name in ("log_ratio/clip_fraction", "log_ratio/abs_mean", "logit_std"):
            result[f"{case}/metric/{name}"] = np.array([metrics[name]], np.float32)
        for name, parameter in policy.network.named_parameters():
            if parameter.grad is not None:
                result[f"{case}/gradient/{name}"] = parameter.grad.numpy().copy()
    return result


if __name__ == "__main__":
    trajectories = roll_out(make_policy())
    save_file({**trajectories, **compute(trajectories)}, FILE)
    FILE.chmod(0o644)
    print(f"wrote {FILE}")
