"""The multi-prompt preset's kind of run on SD1.5's architecture, short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hpsv2_files import write_hpsv2
from rehearsal import DEVICE, REHEARSAL
from sd15_files import write_sd15

from raydense.config import Config
from raydense.core.types import TrajectoryGroup, WorkUnit
from raydense.wiring.policies import build_policy
from raydense.wiring.roles import build_sampler


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory, pipeline_dir: Path) -> Path:
    return pipeline_dir if REHEARSAL else write_sd15(tmp_path_factory.mktemp("sd15") / "pipeline")


@pytest.fixture(scope="session")
def scorer(scorer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """HPSv2's architecture from a file in its format; a rehearsal's processes have a small CLIP."""
    if REHEARSAL:
        return {"kind": "clip", "name": "clip", "model": str(scorer_dir)}
    checkpoint = write_hpsv2(tmp_path_factory.mktemp("hpsv2") / "HPS_v2_compressed.pt", "cuda")
    return {"kind": "hpsv2", "version": "v2.0", "checkpoint": str(checkpoint)}


@pytest.fixture(scope="session")
def values(sd15: Path, scorer: dict[str, Any], small_values: dict[str, Any]) -> dict[str, Any]:
    """The multi-prompt preset's precision and guidance on SD1.5's architecture, short."""
    return {
        "name": "gpu",
        "policy": {"model": str(sd15), "lora_rank": 4},
        "prompts": small_values["prompts"] if REHEARSAL else {"train": "set://paper-train"},
        "reward": {"scorer": scorer},
        "steps": {"count": 4, "draws": 2},
        "sampler": {"trajectories": 4, "keep": 3, "guidance_scale": 7.5, "dtype": "bfloat16", "decode_batch": 2},
        "stage": {"count": 2, "groups": 3, "steps": 4},
        "train": {"batch_groups": 2, "lr": 1e-3, "clip": 0.1},
        "learner": {"dtype": "float16", "micro_batch": 1},
        "evaluate": {"prompts": 2, "images_per_prompt": 2, "grid_prompts": 1, "grid_images": 1},
    }


@pytest.fixture(scope="session")
def config(values: dict[str, Any]) -> Config:
    return Config.model_validate(values)


@pytest.fixture(scope="session")
def groups(config: Config) -> list[TrajectoryGroup]:
    """What a sampler on the device rolled out with the initial weights."""
    sampler = build_sampler(config)
    unit = WorkUnit(0, 0, (0, 1, 2), ("a cat", "a dog", "a fox"), 0)
    weights = build_policy(config, dtype="bfloat16", device=DEVICE, with_decoder=False).weights()
    return list(sampler.sample(unit, weights)[1])
