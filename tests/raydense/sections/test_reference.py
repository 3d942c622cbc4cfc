"""Settings in words: every one is described, and what is allowed comes from the schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raydense.config import Config, flat_settings, load_config
from raydense.sections.reference import allowed, markdown

README = Path(__file__).parents[3] / "raydense" / "sections" / "README.md"


def rows(markdown: str) -> list[tuple[str, str, str, str]]:
    return re.findall(r"^\| `(\S+)` \| (.*?) \| (.*?) \| (.*?) \|$", markdown, re.M)


def schema(section: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = Config.model_json_schema()["$defs"][section]["properties"][name]
    return found


def test_the_table_beside_the_sections_is_what_the_command_writes() -> None:
    assert README.read_text("utf-8") == markdown(Config), "raydense config --markdown > raydense/sections/README.md"


def test_every_setting_is_in_the_table_once_and_described() -> None:
    run, scorers = (rows(part) for part in README.read_text("utf-8").split("\n## Scorers\n"))
    names = [name for name, *_ in run]
    known = {key for key in flat_settings(load_config()) if not key.startswith(("reward.scorer.", "learner.labels."))}
    assert known == set(names) - {"reward.scorer", "reward.watch", "learner.labels", "samplers.labels"}
    assert len(names) == len(set(names))
    assert [name for name, *_, what in (*run, *scorers) if len(what) < 8] == []
    assert [name for name, limits, *_ in (*run, *scorers) if not limits] == ["reward.watch"]  # a section of a section


def test_every_kind_of_scorer_has_its_table() -> None:
    kinds = set(re.findall(r"^### `kind: (\w+)`$", README.read_text("utf-8"), re.M))
    assert kinds == {"aesthetic", "callable", "clip", "hpsv2", "http", "imagereward", "mixture"}


@pytest.mark.parametrize(
    ("section", "name", "words"),
    [
        ("StageConfig", "count", "integer ≥ 1"),
        ("TrainConfig", "lr", "number > 0"),
        ("StepsConfig", "gamma", "number > 0 and ≤ 1"),
        ("SamplersConfig", "hang_factor", "number > 1"),
        ("ComponentConfig", "weight", "number"),
        ("TrainConfig", "betas", "[number ≥ 0 and < 1, number ≥ 0 and < 1]"),
        ("TrainConfig", "reg_to_pi_old", "true or false"),
        ("ReplayConfig", "segments", "true, false or null"),
        ("LearnerConfig", "micro_batch", "integer ≥ 1, auto or null"),
        ("SamplerConfig", "dtype", "float32, bfloat16 or float16"),
        ("TelemetryConfig", "wandb", "online, offline or null"),
        ("SamplerConfig", "device", r"text: (auto|cpu|mps|cuda(:\d+)?)"),
        ("HttpScorerConfig", "name", "text: 1 to 100 characters without / or \\ or a leading dot"),
        ("LearnerConfig", "labels", "mapping: a label and value, !value, in(a,b) or !in(a,b)"),
        ("PolicyConfig", "lora_targets", "list of text, at least 1 or null"),
        ("MixtureScorerConfig", "components", "list, at least 1"),
        ("ComponentConfig", "scorer", "aesthetic, callable, clip, hpsv2, http or imagereward"),
        ("RewardConfig", "monitors", "list of aesthetic, callable, clip, hpsv2, http or imagereward"),
    ],
)
def test_what_is_allowed_in_words(section: str, name: str, words: str) -> None:
    assert allowed(schema(section, name)) == words
