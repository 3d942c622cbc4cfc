"""A mixture is the weighted sum of its components, each of which is computed once and logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from raydense.config import Config
from raydense.core.types import WorkUnit
from raydense.rewards.mixture import MixtureScorer
from raydense.wiring.roles import build_learner, build_sampler

IMAGES = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
PROMPTS = ["a", "bb", "ccc"]


class Constant:
    def __init__(self, name: str, values: Sequence[float]) -> None:
        self.name, self._values, self.calls = name, values, 0

    def score(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        return np.array(self._values, np.float32)


def red(images: np.ndarray, prompts: Sequence[str]) -> Any:
    return images[..., 0].mean(axis=(1, 2))


def length(images: np.ndarray, prompts: Sequence[str]) -> list[float]:
    return [float(len(prompt)) for prompt in prompts]


def component(name: str, weight: float, function: str | None = None) -> dict[str, Any]:
    target = f"{__name__}:{function or name}"
    return {"weight": weight, "scorer": {"kind": "callable", "name": name, "target": target}}


def test_the_weighted_sum() -> None:
    parts = [Constant("a", [1, 2, 3]), Constant("b", [10, 0, -10])]
    scores = MixtureScorer("m", parts, {"a": 2.0, "b": -0.5}).score(IMAGES, PROMPTS)
    assert scores.dtype == np.float32
    assert scores.tolist() == [2 - 5, 4, 6 + 5]


def test_combining_takes_what_was_scored_already() -> None:
    parts = [Constant("a", [1, 2, 3])]
    mixture = MixtureScorer("m", parts, {"a": 3.0})
    assert mixture.combine({"a": np.ones(2, np.float32), "other": np.zeros(2, np.float32)}).tolist() == [3, 3]
    assert parts[0].calls == 0


@pytest.fixture
def mixed(small_config: Callable[..., Config]) -> Config:
    scorer = {"kind": "mixture", "components": [component("red", 0.5), component("length", 2)]}
    monitor = {"kind": "callable", "name": "watched", "target": f"{__name__}:red"}
    return small_config(reward={"scorer": scorer, "monitors": [monitor]})


def test_a_sampler_trains_on_the_sum_and_logs_each_component(mixed: Config) -> None:
    weights = build_learner(mixed, fetch=lambda groups: groups).weights()
    unit = WorkUnit(0, 0, (0, 1), ("a cat", "a red fox"), 0)
    report, groups = build_sampler(mixed).sample(unit, weights)
    for meta, group in zip(report.groups, groups, strict=True):
        assert set(meta.monitors) == {"red", "length", "watched"}
        assert set(meta.monitors["length"]) == {float(len(meta.prompt))}
        assert meta.monitors["watched"] == meta.monitors["red"]
        expected = 0.5 * np.array(meta.monitors["red"]) + 2 * np.array(meta.monitors["length"])
        np.testing.assert_allclose(meta.rewards, expected, rtol=1e-6)
        assert set(group.rewards) <= set(np.array(meta.rewards, np.float32))


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"scorer": {"kind": "mixture", "components": []}}, "at least 1 item"),
        ({"scorer": {"kind": "mixture", "components": [component("red", 1), component("red", 2)]}}, "must differ"),
        ({"scorer": {"kind": "mixture", "name": "red", "components": [component("red", 1)]}}, "must differ"),
        ({"scorer": {"kind": "mixture", "components": [component("red", float("inf"))]}}, "finite"),
        ({"scorer": {"kind": "mixture", "components": [{"weight": 1, "scorer": {"kind": "mixture"}}]}}, "mixture"),
    ],
)
def test_what_is_no_mixture_is_refused(small_config: Callable[..., Config], reward: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        small_config(reward=reward)
