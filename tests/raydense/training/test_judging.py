"""Fixed-seed judging: scores land at their prompt, and the gain is paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raydense.config import Config
from raydense.core.types import Rendered, RenderUnit
from raydense.planning.units import PromptSets
from raydense.records.scores import Judgement
from raydense.sections.roles import RENDER_BATCH
from raydense.training.judging import draw_grid, judge, judge_prompts, paired_gains

SETS = PromptSets(("a cat", "a dog"), ("a hen",))


class RenderingFleet:
    """A `Fleet` whose pictures say their prompt's length and their seed."""

    def __init__(self) -> None:
        self.versions: set[int] = set()

    def broadcast(self, weights: Any) -> None: ...

    def collect(self, units: Any) -> Any: ...

    def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
        results = []
        for unit in units:
            self.versions.add(unit.weights_version)
            images = np.stack([np.full((2, 2, 3), seed, np.uint8) for seed in unit.seeds])
            scores = np.array([100 * ord(p[2]) + s for p, s in zip(unit.prompts, unit.seeds, strict=True)], np.float32)
            results.append(Rendered(images, {"clip": scores, "watched": -scores}))
        return results


def test_a_score_has_its_set_its_prompt_and_its_picture(small_config: Callable[..., Config]) -> None:
    fleet = RenderingFleet()
    scores = judge(small_config(evaluate={"images_per_prompt": 3}), SETS, fleet, weights_version=4).scores
    expected = [[100 * ord("c") + s for s in (0, 1, 2)], [100 * ord("d") + s for s in (3, 4, 5)]]
    assert scores["train"]["clip"].tolist() == expected
    assert scores["train"]["watched"].tolist() == (-np.array(expected)).tolist()
    assert scores["unseen"]["clip"].tolist() == [[100 * ord("h") + s for s in (0, 1, 2)]]
    assert fleet.versions == {4}


def test_rows_of_the_grid_are_prompts_and_columns_seeds(small_config: Callable[..., Config]) -> None:
    config = small_config(evaluate={"grid_prompts": 2, "grid_images": 3})
    images = draw_grid(config, SETS, RenderingFleet(), 0)
    assert images.shape == (2, 3, 2, 2, 3)
    assert images[:, :, 0, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_gain_is_paired_by_prompt_and_seed() -> None:
    before = np.array([[0.0, 10.0], [20.0, 30.0]], np.float32)
    gain = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    result = paired_gains(Judgement({"train": {"clip": before}}), Judgement({"train": {"clip": before + gain}}))
    row = result["clip"]["train"]
    assert (row["before"]["mean"], row["after"]["mean"], row["gain"]["mean"]) == (15.0, 17.5, 2.5)
    # the pairing removes the spread of the prompts: deviations −1.5 −0.5 0.5 1.5, variance 5/3, over 4
    assert row["gain"]["se"] == pytest.approx(math.sqrt(5 / 3 / 4))
    assert row["before"]["se"] == pytest.approx(math.sqrt(500 / 3 / 4))
    assert row["gain"]["n"] == 4


def test_a_gain_is_of_prompts_that_have_both_scores() -> None:
    nan = math.nan
    before = np.array([[0, 2], [nan, 1], [4, 4], [9, 9]], np.float32)
    after = np.array([[1, 3], [5, 5], [6, 6], [nan, nan]], np.float32)
    nothing = np.full((4, 2), nan, np.float32)
    result = paired_gains(
        Judgement({"train": {"watched": before, "gone": before}}),
        Judgement({"train": {"watched": after, "gone": nothing}}),
    )
    row = result["watched"]["train"]
    assert {name: (row[name]["mean"], row[name]["n"]) for name in row} == {
        "before": (2.5, 4),
        "after": (4.0, 4),
        "gain": (1.5, 4),
    }
    assert "gone" not in result


def test_a_failing_monitor_is_named_once_and_what_it_scored_is_kept() -> None:
    class Failing(RenderingFleet):
        def render(self, units: Iterable[RenderUnit]) -> list[Rendered]:
            results = super().render(units)
            nan = np.full_like(results[0].scores["clip"], math.nan)
            scores, failures = {**results[0].scores, "watched": nan}, {"watched": f"of {len(results)} units"}
            return [replace(results[0], scores=scores, failures=failures), *results[1:]]

    sets = {"train": [f"a {i} cats" for i in range(RENDER_BATCH)], "unseen": ["a hen"]}
    judgement = judge_prompts(sets, 2, Failing(), 0)
    assert judgement.failures == {"watched": "of 2 units"}
    missing = np.isnan(judgement.scores["train"]["watched"]).all(axis=1)
    assert missing.tolist() == [True] * (RENDER_BATCH // 2) + [False] * (RENDER_BATCH // 2)
    assert not np.isnan(judgement.scores["train"]["clip"]).any()
