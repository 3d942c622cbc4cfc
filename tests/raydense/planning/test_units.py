"""What a run will do, from its configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydense.config import Config
from raydense.planning.units import (
    PromptSets,
    grid_prompts,
    judged_prompts,
    read_prompt_sets,
    render_units,
    stage_units,
)
from raydense.sections.roles import RENDER_BATCH

PROMPTS = ("a cat", "a dog", "a red fox")


def test_a_stage_is_cut_into_units_of_a_fixed_size(small_config: Callable[..., Config]) -> None:
    units = stage_units(small_config(), PROMPTS, stage=1, weights_version=3)
    assert [u.group_indices for u in units] == [(0, 1), (2, 3), (4,)]
    assert [u.index for u in units] == [0, 1, 2]
    assert {(u.stage, u.weights_version) for u in units} == {(1, 3)}
    assert all(len(u.prompts) == len(u.group_indices) for u in units)


def test_prompts_go_on_in_shuffled_passes_across_stages(small_config: Callable[..., Config]) -> None:
    config = small_config(stage={"count": 3, "groups": 4}, sampler={"unit_prompts": 4})
    prompts = [p for stage in range(3) for u in stage_units(config, PROMPTS, stage, 0) for p in u.prompts]
    for start in range(0, 12, 3):
        assert sorted(prompts[start : start + 3]) == sorted(PROMPTS)


def test_what_is_sampled_does_not_depend_on_the_size_of_a_unit(small_config: Callable[..., Config]) -> None:
    drawn = []
    for size in (1, 2, 5):
        units = stage_units(small_config(sampler={"unit_prompts": size}), PROMPTS, 0, 0)
        drawn.append([pair for u in units for pair in zip(u.group_indices, u.prompts, strict=True)])
    assert drawn[0] == drawn[1] == drawn[2]


def test_every_picture_of_a_rendering_has_its_own_seed() -> None:
    units = render_units(("a cat", "a dog"), images_per_prompt=40, weights_version=5)
    assert [len(u.prompts) for u in units] == [RENDER_BATCH, RENDER_BATCH, 80 - 2 * RENDER_BATCH]
    assert [s for u in units for s in u.seeds] == list(range(80))
    assert [p for u in units for p in u.prompts] == ["a cat"] * 40 + ["a dog"] * 40
    assert {u.weights_version for u in units} == {5}


def test_the_judged_and_the_drawn_prompts_are_spread_over_both_sets(small_config: Callable[..., Config]) -> None:
    sets = PromptSets(tuple("abcdefgh"), tuple("wxyz"))
    config = small_config(evaluate={"prompts": 2, "grid_prompts": 4})
    assert judged_prompts(config, sets) == {"train": ("a", "e"), "unseen": ("w", "y")}
    assert grid_prompts(config, sets) == ("a", "e", "w", "y")
    alone = PromptSets(tuple("abcdefgh"), ())
    assert judged_prompts(config, alone) == {"train": ("a", "e")}
    assert grid_prompts(config, alone) == ("a", "c", "e", "g")


def test_a_prompt_in_both_sets_is_refused(
    small_config: Callable[..., Config], small_values: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "unseen.txt").write_text("a hen\na dog\n")
    assert read_prompt_sets(small_config()).unseen == ("a hen", "a cow")
    assert read_prompt_sets(small_config(prompts={"unseen": None})).unseen == ()
    with pytest.raises(ValueError, match=r"prompts\.unseen holds 'a dog', which prompts\.train holds too"):
        read_prompt_sets(small_config(prompts={"unseen": str(tmp_path / "unseen.txt")}))


@pytest.mark.parametrize(
    ("unit_prompts", "trajectories", "expected"), [("auto", 12, 2), ("auto", 5, 6), ("auto", 40, 1), (3, 12, 3)]
)
def test_auto_draws_as_many_images_at_once_as_judging_does(
    small_config: Callable[..., Config], unit_prompts: Any, trajectories: int, expected: int
) -> None:
    config = small_config(sampler={"unit_prompts": unit_prompts, "trajectories": trajectories}, stage={"groups": 7})
    units = stage_units(config, PROMPTS, 0, 0)
    assert [len(unit.prompts) for unit in units] == [min(expected, 7 - i) for i in range(0, 7, expected)]
