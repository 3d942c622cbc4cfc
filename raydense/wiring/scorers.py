"""Judges, as a configuration names them."""

from __future__ import annotations

from typing import Any

import torch

from raydense.core.interfaces import Scorer
from raydense.rewards.mixture import MixtureScorer
from raydense.sections.rewards import ScorerConfig
from raydense.wiring.devices import resolve_device


def build_scorer(config: ScorerConfig) -> Scorer:
    """Builds one scorer; its module is imported only here, when it is the chosen one."""
    if config.kind == "mixture":
        components = [build_scorer(component.scorer) for component in config.components]
        weights = {component.scorer.name: component.weight for component in config.components}
        return MixtureScorer(config.name, components, weights)
    if config.kind == "callable":
        from raydense.rewards.function import FunctionScorer

        return FunctionScorer(config.name, config.target)
    if config.kind == "http":
        from raydense.rewards.http import HttpScorer

        return HttpScorer(**config.model_dump(exclude={"kind"}))
    options: dict[str, Any] = config.model_dump(exclude={"kind", "device"})
    options["device"] = resolve_device(config.device, f"scorer {config.name}: device")
    if config.kind == "clip":
        from raydense.rewards.clip import load_clip_scorer

        return load_clip_scorer(**options)
    if config.kind == "aesthetic":
        from raydense.rewards.aesthetic import AestheticScorer

        return AestheticScorer(**options)
    if config.kind == "imagereward":
        from raydense.rewards.imagereward import ImageRewardScorer

        return ImageRewardScorer(**options)
    from raydense.rewards.hpsv2 import HPSv2Scorer

    return HPSv2Scorer(**{**options, "dtype": getattr(torch, config.dtype)})
