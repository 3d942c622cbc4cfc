"""Judges, as a configuration names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scoring_server import serving

from raydense.config import Config
from raydense.wiring.scorers import build_scorer

IMAGES = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
PROMPTS = ["a", "bb", "ccc"]


def red(images: np.ndarray, prompts: Sequence[str]) -> Any:
    return images[..., 0].mean(axis=(1, 2))


def length(images: np.ndarray, prompts: Sequence[str]) -> list[float]:
    return [float(len(prompt)) for prompt in prompts]


def function(name: str) -> dict[str, Any]:
    return {"kind": "callable", "name": name, "target": f"{__name__}:{name}"}


def test_a_mixture_is_the_weighted_sum_of_its_components(small_config: Callable[..., Config]) -> None:
    components = [{"weight": 0.5, "scorer": function("red")}, {"weight": 2, "scorer": function("length")}]
    monitor = {**function("red"), "name": "watched"}
    config = small_config(reward={"scorer": {"kind": "mixture", "components": components}, "monitors": [monitor]})
    scorer = build_scorer(config.reward.scorer)
    assert scorer.name == "mixture"
    expected = 0.5 * red(IMAGES, PROMPTS) + 2 * np.array(length(IMAGES, PROMPTS))
    np.testing.assert_allclose(scorer.score(IMAGES, PROMPTS), expected, rtol=1e-6)
    assert [judge.name for judge in config.reward.judges] == ["red", "length", "watched"]


def test_a_server_is_asked(small_config: Callable[..., Config]) -> None:
    with serving() as server:
        config = small_config(reward={"scorer": {"kind": "http", "name": "served", "url": server.url}})
        assert build_scorer(config.reward.scorer).score(IMAGES[:1], ["a"]).tolist() == [
            np.float32(IMAGES[0].mean() + 1)
        ]
