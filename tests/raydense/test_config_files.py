"""A file that names its base: what it changes, what it replaces, and what is said of one that cannot be completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from raydense.config import Config, ConfigError, flat_settings, load_config, preset_names, validated_config
from raydense.config_files import merged

HPS = {"kind": "hpsv2", "checkpoint": "/hps.pt"}
CLIP = {"kind": "clip", "name": "other", "model": "/clip"}
KNOWN = ", ".join(preset_names())


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(text, "utf-8")
    return file


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ({"a": 1, "b": 2}, {}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"s": {"a": 1, "b": {"c": 2, "d": 3}}}, {"s": {"b": {"d": 4}}}, {"s": {"a": 1, "b": {"c": 2, "d": 4}}}),
        ({"s": {"a": 1}}, {"t": {"b": 2}}, {"s": {"a": 1}, "t": {"b": 2}}),
        ({"l": [{"a": 1}, {"b": 2}]}, {"l": [{"c": 3}]}, {"l": [{"c": 3}]}),
        ({"l": [1, 2]}, {"l": []}, {"l": []}),
        ({"s": {"a": 1}}, {"s": None}, {"s": None}),  # and is refused where it is read
        ({"s": {"a": 1}}, {"s": 5}, {"s": 5}),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"s": HPS}, {"s": {"version": "v2.1"}}, {"s": {**HPS, "version": "v2.1"}}),
        ({"s": HPS}, {"s": {"kind": "hpsv2", "version": "v2.1"}}, {"s": {**HPS, "version": "v2.1"}}),
        ({"s": HPS}, {"s": CLIP}, {"s": CLIP}),
        ({"s": HPS}, {"s": {"kind": "imagereward"}}, {"s": {"kind": "imagereward"}}),
    ],
)
def test_mappings_are_merged_and_all_else_is_replaced(
    base: dict[str, Any], changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = yaml.safe_dump([base, changes])
    assert merged(base, changes) == expected
    assert yaml.safe_dump([base, changes]) == before  # neither has been changed


@pytest.mark.parametrize(
    ("text", "overrides", "as_set"),
    [
        ("preset: tiny", [], []),
        ("preset: multi-prompt", [], []),
        ("preset: tiny\nseed: 7", [], ["seed=7"]),
        ("seed: 7\npreset: tiny", [], ["seed=7"]),
        ("preset: tiny\ntrain: {c: 5, lr: 1.0e-3}", [], ["train.c=5", "train.lr=1e-3"]),
        ("preset: tiny\ntrain: {c: 5}", ["train.c=6"], ["train.c=6"]),  # --set comes last
        ("preset: tiny\nprompts: {unseen: null}", [], ["prompts.unseen=null"]),
        ("preset: tiny\nreward: {monitors: []}", [], ["reward.monitors=[]"]),
        ("preset: tiny\nreward: {watch: {stop: true}}", [], ["reward.watch.stop=true"]),
        ("preset: tiny\nreward: {scorer: {batch_size: 8}}", [], ["reward.scorer.batch_size=8"]),
        ("preset: tiny\nreward: {scorer: {kind: clip, name: c}}", [], ["reward.scorer.name=c"]),
        ("preset: tiny\nreward: {scorer: {kind: hpsv2}}", [], ["reward.scorer={kind: hpsv2}"]),
        ("preset: tiny\nlearner: {labels: {}}", [], ["learner.labels={}"]),
        ("preset: tiny\npolicy: {lora_targets: [to_q]}", [], ["policy.lora_targets=[to_q]"]),
    ],
)
def test_a_file_over_its_base_is_the_base_with_overrides(
    tmp_path: Path, text: str, overrides: list[str], as_set: list[str]
) -> None:
    found = load_config(str(written(tmp_path, text)), overrides=overrides)  # in Python, a name will do
    values = yaml.safe_load(text)
    assert found == load_config(preset=values["preset"], overrides=as_set)
    assert found == validated_config(values, overrides)  # as the Python API has it
    assert set(yaml.safe_load(found.to_yaml())) == {"format", *Config.model_fields}  # a run writes the whole


def test_a_scorer_of_another_kind_has_its_own_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "preset: tiny\nreward: {scorer: {kind: hpsv2}}"))
    assert config.reward.scorer.batch_size == 16  # not the 256 of the base's scorer
    assert config.reward.scorer.name == "hpsv2"
    assert [monitor.name for monitor in config.reward.monitors] == ["oracle"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "preset: tinny",
            f"preset=tinny is unknown; allowed: {KNOWN} (did you mean tiny?)",
        ),
        (
            "preset:",
            f"preset=None is unknown; allowed: {KNOWN}",
        ),
        (
            "preset: 5",
            f"preset=5 is unknown; allowed: {KNOWN}",
        ),
        (
            "preset: [a, b]",
            f"preset=['a', 'b'] is unknown; allowed: {KNOWN}",
        ),
        (
            "preset: /a/mine.yaml",
            f"preset=/a/mine.yaml is unknown; allowed: {KNOWN}",
        ),
        ("preset: tiny\npreset: tiny", "is not valid YAML: 'preset' is there twice in \"<unicode string>\", line 2"),
        ("preset: tiny\n? [a, b]\n: 3", "is not valid YAML: a key is no text in"),
    ],
)
def test_a_base_that_is_not_there_is_named_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset: tiny\nstages: {count: 2}", "stages is not a setting; allowed here: name"),
        ("preset: tiny\ntrain: {cilp: 2}", "train.cilp is not a setting; allowed here: objective, batch_groups"),
        ("preset: tiny\ntrain: {preset: tiny}", "train.preset is not a setting; allowed here: objective, batch_groups"),
        ("preset: tiny\ntrain:", "train is empty; give its settings, or remove it where a base has them"),
        (
            "preset: tiny\nreward: {scorer: }",
            "reward.scorer is empty; give its settings, or remove it where a base has",
        ),
        ("preset: tiny\ntrain: 5", "train=5: input should be a valid dictionary"),
        ("preset: tiny\nreward: {scorer: {kind: clip2}}", "reward.scorer.kind='clip2': input should be one of"),
        ("preset: tiny\nreward: {scorer: {kind: aesthetic}}", "reward.scorer.head is missing; add it to the configura"),
        (
            "preset: tiny\nreward: {scorer: {version: v2.1}}",
            "reward.scorer.version is not a setting; allowed here: kind",
        ),
    ],
)
def test_what_differs_is_checked_like_a_whole_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1


ALL = "policy, prompts, reward, steps, sampler, stage, train"


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("seed: 7", [], f"FILE lacks {ALL}; add them, or put `preset: tiny` at its top, which supplies them"),
        ("{}", [], f"FILE lacks {ALL}; add them, or put `preset: tiny` at its top, which supplies them"),
        ("policy: {lora_rank: 8}", ["train.lr=1"],
         "FILE lacks policy.model, prompts, reward, steps, sampler, stage, train.batch_groups; add them, or put "
         "`preset: tiny` at its top, which supplies them"),
        ("reward: {scorer: {kind: aesthetic}}", [],
         "FILE lacks policy, prompts, reward.scorer.head, steps, sampler, stage, train; add them, or put "
         "`preset: tiny` at its top, which supplies policy, prompts, steps, sampler, stage, train"),
        # of a file that has all of its sections, `preset` would change nothing
        ("preset: tiny", ["stage={count: 2}"], "stage.groups, stage.steps are missing; add them to the configuration"),
        ("preset: tiny", ["train={batch_groups: 2}"], "train.lr is missing; add it to the configuration"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_one_line(tmp_path: Path, text: str, overrides: list[str], said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides=overrides)
    assert str(caught.value) == said.replace("FILE", str(file))


def test_the_preset_that_is_proposed_has_all_that_a_file_may_lack() -> None:
    with pytest.raises(ConfigError) as caught:
        validated_config({"train": {}, "prompts": {}, "policy": {}, "reward": {}, "stage": {}}, [])
    lacks = str(caught.value).removeprefix("the configuration lacks ").partition(";")[0].split(", ")
    known = flat_settings(load_config(preset="tiny"))
    assert len(lacks) == 10
    assert all(any(key == name or key.startswith(f"{name}.") for key in known) for name in lacks)


@pytest.mark.parametrize("base", ["tiny", "multi-prompt", None])
def test_a_file_and_a_preset_exclude_each_other(tmp_path: Path, base: str | None) -> None:
    file = written(tmp_path, f"preset: {base}" if base else "seed: 3")
    with pytest.raises(ConfigError) as caught:
        load_config(file, preset="tiny")
    assert str(caught.value) == (
        f"{file} and --preset=tiny: give one, not both; a file names its base by `preset: tiny` at its top"
    )


def test_a_base_is_not_set() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["preset=tiny"])
    assert str(caught.value).startswith("--set 'preset=tiny': a base is named by --preset, or by `preset:` at the top")
