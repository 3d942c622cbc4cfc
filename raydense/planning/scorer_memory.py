"""What a judge takes of its device's memory, from its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydense.files.weight_files import read_json
from raydense.pipelines.model_folder import ModelFolder
from raydense.planning.footprint import judge_footprint
from raydense.sections.rewards import CallableScorerConfig, HttpScorerConfig, SingleScorerConfig

PARAMETERS = {  # ViT-H/14; ViT-L/14 with its head; ViT-L/16, BERT with cross-attention and a head
    "hpsv2": 986_109_441,
    "aesthetic": 428_500_000,
    "imagereward": 446_206_689,
}
VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "patch_size": 14}
VIT_H = {**VIT_L, "hidden_size": 1280, "intermediate_size": 5120}
SEES_BY: Mapping[str, Mapping[str, Any]] = {
    "hpsv2": VIT_H,
    "aesthetic": VIT_L,
    "imagereward": {**VIT_L, "patch_size": 16},
}
LARGEST = 986_109_441  # parameters of the largest CLIP that judges are made of, with ViT-H/14


def scorer_bytes(scorer: SingleScorerConfig, images: int) -> int:
    """Weights in float32, and pictures on their way through. Args: images: drawn at once."""
    if isinstance(scorer, CallableScorerConfig | HttpScorerConfig):
        return 0  # which says nothing of itself, or computes elsewhere
    batch = min(scorer.batch_size, images)
    if scorer.kind == "clip":
        path = ModelFolder(f"scorer {scorer.name}: model", scorer.model, scorer.revision).find("config.json")
        if path is not None:
            judge = judge_footprint("CLIPModel", read_json(path))
            return 4 * judge.parameters + batch * judge.peak_bytes
    seen = judge_footprint("CLIPVisionModel", {**SEES_BY.get(scorer.kind, VIT_H), "num_hidden_layers": 2})
    return 4 * PARAMETERS.get(scorer.kind, LARGEST) + batch * seen.peak_bytes
