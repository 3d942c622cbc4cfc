"""What a run keeps of its inputs: pins by setting, and the prompts themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydense.config import ConfigError
from raydense.prompts.prompt_sets import load_prompts
from raydense.records.inputs import Pin, kept_prompts, prompts_checksum, read_pins, write_pins

PINS = {
    "prompts.train": Pin("prompts.txt", "/home/me/prompts.txt", {".": "1a"}),
    "policy.model": Pin("owner/name", "owner/name", {}),
    "scorer clip: model": Pin("clip", "/models/clip", {".": "2b"}),
}


def test_pins_come_back(tmp_path: Path) -> None:
    assert read_pins(tmp_path) is None
    write_pins(tmp_path, PINS, {}, [])
    assert read_pins(tmp_path) == PINS


def test_what_was_accepted_is_kept_with_what_was_accepted_before(tmp_path: Path) -> None:
    for accepted in ([], ["policy.model=a (unet)"], [], ["prompts.train=b", "prompts.unseen=c"]):
        write_pins(tmp_path, PINS, {}, accepted)
    recorded = json.loads((tmp_path / "inputs.json").read_text())["accepted"]
    assert [entry["changes"] for entry in recorded] == [
        ["policy.model=a (unet)"],
        ["prompts.train=b", "prompts.unseen=c"],
    ]
    assert all(entry["time"] > 1.7e9 for entry in recorded)


@pytest.mark.parametrize(
    "prompt",
    ["a cat", "two\nlines", "a\rreturn", "a\u2028separator\x85here", 'a "quoted" \\ back\\nslash', "Käfer 猫 🐈", "{}"],
)
def test_a_prompt_comes_back_whatever_it_holds(prompt: str, tmp_path: Path) -> None:
    write_pins(tmp_path, PINS, {"train": [prompt, "a dog"]}, [])
    assert load_prompts(str(kept_prompts(tmp_path, "train"))).prompts == (prompt, "a dog")


def test_the_checksum_of_prompts_tells_their_order_and_borders() -> None:
    sets = (["a", "b"], ["b", "a"], ["a b"], ["a"], ["a", "b", "c"], ["ab"])
    assert len({prompts_checksum(prompts) for prompts in sets}) == len(sets)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"inputs": {"a": {"written": 1}}}', '{"inputs": [1]}'])
def test_a_damaged_record_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/inputs.json cannot be read \(.*\); restore it$"):
        read_pins(tmp_path)
