"""A commented YAML: the comments stand where they belong, and what is read back is the configuration itself."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from raydense.config import load_config, preset_names, validated_config
from raydense.sections.commented import commented_yaml

MIXTURE = {
    "kind": "mixture",
    "normalise": "zscore",
    "components": [
        {"weight": 1, "scorer": {"kind": "clip", "name": "a", "model": "/a"}},
        {"weight": -0.5, "scorer": {"kind": "callable", "name": "b", "target": "m:f"}},
    ],
}
NASTY = ("a: b # c", " led", "été", 'it\'s "so"', "null", "yes", "1e5", "a\nb", "- a", "{a", "%a", "x" * 300, "\u2028é")


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_with_its_comments_reads_back(name: str) -> None:
    config = load_config(preset=name)
    assert yaml.safe_load(commented_yaml(config)) == config.model_dump(mode="json")
    assert validated_config(yaml.safe_load(commented_yaml(config)), []) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"reward": {"scorer": MIXTURE, "monitors": [{"kind": "hpsv2"}, {"kind": "aesthetic", "head": "/h.pth"}]}},
        {"reward": {"monitors": []}, "samplers": {"labels": {"a/b": "in(c, d)", "e": "!f"}}, "learner": {"labels": {}}},
        {"train": {"eps": 1e-12, "c": 1e300, "betas": [0, 0.5]}, "steps": {"count": 10**6}},
        *({"prompts": {"train": text}, "policy": {"lora_targets": [text, "to_q"]}} for text in NASTY),
    ],
)
def test_whatever_is_set_reads_back(changes: dict[str, Any]) -> None:
    config = validated_config({"preset": "tiny", **changes}, [])
    text = commented_yaml(config)
    assert yaml.safe_load(text) == config.model_dump(mode="json")
    assert validated_config(yaml.safe_load(text), []) == config


def test_a_comment_says_what_what_is_allowed_and_the_default() -> None:
    lines = commented_yaml(load_config(preset="multi-prompt")).splitlines()
    for comment, setting in (
        ("  # Groups drawn for a gradient step. [integer ≥ 1; required]", "  batch_groups: 32"),
        ("  # T: denoising steps. [integer ≥ 1; default 50]", "  count: 50"),
        ("    # HPSv2, the paper's multi-prompt preference model.", "    kind: hpsv2"),
        ("# The loss and the optimizer (METHOD §4).", "train:"),
    ):
        assert lines[lines.index(setting) - 1] == comment
    assert all(line.lstrip().startswith("#") or not line or re.match(r" *(- )?\w+:( |$)", line) for line in lines)
    assert max(map(len, lines)) <= 120


def test_items_of_a_list_are_commented_where_they_stand() -> None:
    lines = commented_yaml(load_config()).splitlines()
    at = lines.index("    - kind: callable")
    assert lines[at - 2 : at + 3] == [
        "  monitors:",
        "    # A user's own function of images (uint8 [N, h, w, 3]) and N prompts, which gives N numbers.",
        "    - kind: callable",
        "      # What logs and tables call it. [text: 1 to 100 characters without / or \\ or a leading dot; required]",
        "      name: oracle",
    ]


def test_every_kind_of_scorer_is_told_at_the_end() -> None:
    text = commented_yaml(load_config())
    kinds = ["aesthetic", "callable", "clip", "hpsv2", "http", "imagereward", "mixture"]
    assert re.findall(r"^# kind: (\w+)$", text, re.M) == kinds
    assert "\n#   target: The function, as module:function. [text; required]\n" in text
    assert "\n#   components[].weight: What its score is multiplied by; may be negative. [number; required]\n" in text
