"""What a sampler and its judges are planned to take, against what PyTorch's own allocator counts when they run."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from allocator import allocated, kept_by

from raydense.config import Config, load_config
from raydense.core.types import WorkUnit
from raydense.pipelines.pipeline_files import read_pipeline
from raydense.planning.footprint import decoder_footprint, denoiser_footprint
from raydense.planning.memory import CUDA_CONTEXT, encoder_bytes, sampler_bytes
from raydense.planning.scorer_memory import scorer_bytes
from raydense.wiring.policies import build_policy, family_for, lora_config, resolved
from raydense.wiring.roles import build_sampler
from raydense.wiring.scorers import build_scorer

CLOSE = 0.15
IMAGES = 32  # which are drawn at once to judge, and here in a unit: of fewer than 17, a GPU keeps what it records
UNIT = ["sampler.trajectories=4", "sampler.keep=4", "sampler.unit_prompts=8", "train.tuple_size=2"]
FEW_STEPS = ["steps.count=2", "steps.window=null", "evaluate.steps=null"]
NOBODY = "reward={scorer: {kind: callable, name: none, target: 'raydense.tiny.oracle:score'}, monitors: []}"
SAMPLERS = [
    ("tiny", []),  # the decoder takes most
    ("tiny", ["sampler.guidance_scale=3", "sampler.decode_batch=2"]),  # here the U-Net
    pytest.param("tiny", ["sampler.dtype=bfloat16", "sampler.exact=true"], marks=pytest.mark.slow),
    ("tiny-flow", ["sampler.dtype=float16", "sampler.guidance_scale=3", "sampler.decode_batch=2"]),
]


def planned(config: Config) -> float:
    """Of a sampler, without what a GPU takes whatever is computed."""
    files = read_pipeline(config.policy.model, None, fetch=False)
    family, dtype = family_for(config, files), getattr(torch, config.sampler.dtype)
    lora = lora_config(resolved(config, family))
    rolled = denoiser_footprint(family, lora, dtype=dtype, with_gradient=False)
    decoder = decoder_footprint(files["vae"] or {}, latent_size=family.latent_shape[1:], dtype=dtype)
    return sampler_bytes(config, family, rolled, decoder, encoder_bytes(config, files)) - CUDA_CONTEXT


@pytest.mark.parametrize(("preset", "overrides"), SAMPLERS, ids=lambda value: " ".join(value) or "as it is")
def test_a_sampler_takes_what_is_planned(preset: str, overrides: list[str]) -> None:
    config = load_config(None, preset, [*UNIT, *FEW_STEPS, NOBODY, *overrides])
    weights = build_policy(config, dtype="float32", device=torch.device("cpu"), with_decoder=False).weights()
    sampler, held = kept_by(lambda: build_sampler(config))
    unit = WorkUnit(0, 0, tuple(range(8)), ("a red circle",) * 8, weights.version)
    found = held + allocated(lambda: sampler.sample(unit, weights))
    assert planned(config) == pytest.approx(found, rel=CLOSE)


@pytest.mark.parametrize("batch_size", [pytest.param(8, marks=pytest.mark.slow), 256])
def test_a_judge_takes_what_is_planned(batch_size: int) -> None:
    config = load_config(overrides=[f"reward.scorer.batch_size={batch_size}"]).reward.scorer
    scorer, held = kept_by(partial(build_scorer, config))
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
    judge: Any = config
    found = held + allocated(lambda: scorer.score(images, ["a red circle"] * IMAGES))
    assert scorer_bytes(judge, IMAGES) == pytest.approx(found, rel=CLOSE)
