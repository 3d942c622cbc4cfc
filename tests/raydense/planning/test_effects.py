"""What cannot act on the model at hand: refused in a line, or told where a preset may have set it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_families import write_sd3

from raydense.config import Config, ConfigError
from raydense.planning.dry_run import check_and_plan
from raydense.planning.effects import idle_overrides
from raydense.planning.preflight import check_inputs, check_pipeline


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"t5": "cpu"}, "policy.t5=cpu: this StableDiffusion3Pipeline comes without its T5; leave it device"),
        (
            {"channels_last": True},
            "policy.channels_last=true: a StableDiffusion3Pipeline has no U-Net, whose layout",
        ),
    ],
)
def test_what_a_flow_without_a_t5_has_no_use_for(
    policy: dict[str, Any], said: str, make_once: Callable[..., Path], small_config: Callable[..., Config]
) -> None:
    model = make_once("kind-sd3-without-t5", partial(write_sd3, t5=False))
    with pytest.raises(ConfigError, match=said):
        check_pipeline(small_config(policy={"model": str(model), **policy}))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"policy": {"revision": "v2"}}, "policy.revision=v2 is not read: {model} is a directory"),
        ({"reward": {"scorer": {"kind": "clip", "name": "clip", "model": "{scorer}", "revision": "main"}}},
         "scorer clip: revision=main is not read: {scorer} is a directory"),
        ({"steps": {"window": (0, 2), "exclude_last": 2}},
         "steps.exclude_last=2 leaves nothing out: steps.window=[0, 2] ends before the last 2 of 4 steps"),
        ({"steps": {"window": (0, 3), "exclude_last": 2}}, ""),
        ({"steps": {"window": (0, 2)}}, ""),
    ],
)  # fmt: skip
def test_what_a_preset_may_have_set_is_told(
    sections: dict[str, Any], told: str, pipeline_dir: Path, scorer_dir: Path, small_config: Callable[..., Config]
) -> None:
    if "reward" in sections:
        sections = {"reward": {"scorer": {**sections["reward"]["scorer"], "model": str(scorer_dir)}}}
    names = {"model": pipeline_dir, "scorer": scorer_dir}
    assert check_pipeline(small_config(**sections)).notes == ((told.format(**names),) if told else ())


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"stage": {"count": 1, "schedule": "overlapped"}},
         "stage.schedule=overlapped overlaps nothing: stage.count=1"),
        ({"stage": {"count": 2, "schedule": "overlapped"}}, ""),
        ({"train": {"tuple_choice": "best_worst", "tuple_size": 3}},
         "train.tuple_choice=best_worst chooses nothing: train.tuple_size=3 takes all of sampler.keep"),
        ({"train": {"tuple_choice": "best_worst", "tuple_size": 2}}, ""),
        ({"stage": {"count": 2, "steps": 3}, "evaluate": {"every_steps": 6}},
         "evaluate.every_steps=6 adds nothing: the run ends after 6 steps, and is judged then anyway"),
        ({"stage": {"count": 2, "steps": 3}, "evaluate": {"every_steps": 5}}, ""),
        ({"stage": {"count": 2, "steps": 3}, "checkpoint": {"every_steps": 3}},
         "checkpoint.every_steps=3 adds nothing: a stage ends with a checkpoint, stage.steps=3"),
        ({"stage": {"count": 2, "steps": 3}, "checkpoint": {"every_steps": 7}},
         "checkpoint.every_steps=7 adds nothing: a stage ends with a checkpoint, stage.steps=3"),
        ({"stage": {"count": 2, "steps": 3}, "checkpoint": {"every_steps": 4}}, ""),
    ],
)  # fmt: skip
def test_what_changes_nothing_in_a_run_is_told_to_who_starts_or_plans_one(
    sections: dict[str, Any], told: str, small_config: Callable[..., Config]
) -> None:
    config, notes = small_config(**sections), ((told,) if told else ())
    assert check_inputs(config).notes == notes
    assert set(notes) <= set(check_and_plan(config, tflops=1.0).notes)
    assert check_pipeline(config).notes == ()


def test_segments_that_nobody_writes_cannot_be_kept(small_config: Callable[..., Config]) -> None:
    config = small_config(replay={"keep_segments": True})
    for check in (check_inputs, partial(check_and_plan, tflops=1.0)):
        with pytest.raises(ConfigError, match=r"writes groups of 1048576 bytes or more, and one of this run has \d+"):
            check(config)
    written = small_config(replay={"keep_segments": True, "segments": True})
    assert check_inputs(written).notes == ()
    assert check_and_plan(written, tflops=1.0).segment_bytes == 2 * 5 * check_and_plan(written, tflops=1.0).group_bytes
    large = small_config(replay={"keep_segments": True}, sampler={"latent_size": 256})
    assert check_and_plan(large, tflops=1.0).group_bytes > 2**20


def test_what_was_asked_for_of_the_fleet_is_not_read_without_one() -> None:
    asked = ["sampler.threads=2", "samplers.count=3", " samplers={count: 2}"]
    told = "is not read: --local draws in this process, without sampler actors"
    assert list(idle_overrides(asked, local=True)) == [f"samplers.count {told}", f"samplers {told}"]
    assert list(idle_overrides(asked, local=False)) == []
