"""What a value on a command line says: a text as it stands, and what alone is read as something else."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydense.config import Config
from raydense.sections.values import NULL, read_value, split_values, takes_text

TEXTS = [  # that YAML cuts, refuses or takes for something else
    "run #7", "#7", "/data/run #7/prompts.txt", "a#b",  # comments
    "C: x", "a: b: c", "key:", "set://paper-train#index=0", "https://judge.example/score",  # mappings
    "- a", "-", "--- a", "---", "...", "? a", "| a", "> a", "%a", "@a", "`a`", "a\tb", "a\nb", "a, b", "]", "}",
    "&a", "&a b", "*a", "!a", "!!python/object:x", "<<", "=",  # anchors, tags, and YAML 1.1's own words
    "yes", "no", "on", "off", "y", "N", "1:30", "2024-01-01", "1_000", "0b11", "1e", "e5", ".", "1.2.3", "nil",
    "it's", 'a "b" c', "a'", "\\n", "%s", "[red", "{x",
]  # fmt: skip


@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith(("[", "{"))])
def test_a_text_is_as_it_is_written(text: str) -> None:
    assert read_value(text) == read_value(text, as_text=True) == text
    assert read_value(f" {text}\t") == text


@given(st.text())
def test_no_text_loses_a_part(text: str) -> None:
    stripped = text.strip(" \t\r\n")
    if stripped and stripped not in NULL and not stripped.startswith(("[", "{", "'", '"')):
        assert read_value(text, as_text=True) == stripped


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None), ("~", None), ("true", True), ("False", False),
        ("7", 7), ("-1", -1), ("+3", 3), ("010", 10), ("0x10", 16), ("0o17", 15),
        ("1e-4", 1e-4), ("3E5", 3e5), ("1.", 1.0), (".5", 0.5), ("-.inf", -math.inf), ("inf", math.inf),
        ("[]", []), ("[a, 7, no, 1e-4, 010]", ["a", 7, "no", 1e-4, 10]), ("{a: {b: [c]}}", {"a": {"b": ["c"]}}),
        ("{name: run #7, target: a:b}", {"name": "run #7", "target": "a:b"}), ("[a #1, b]", ["a #1", "b"]),
        ('"a # b"', "a # b"), ("'it''s'", "it's"), ('" a "', " a "), ('""', ""), ('"7"', "7"),
        ("['7', null]", ["7", None]),
    ],
)  # fmt: skip
def test_what_is_no_text(text: str, value: Any) -> None:
    found = read_value(text)
    assert (found, type(found)) == (value, type(value))
    assert math.isnan(read_value(".nan")) and math.isnan(read_value("nan"))


@pytest.mark.parametrize("text", ["7", "007", "1e5", "0x10", "true", "2024", ".inf", "1_0"])
def test_a_setting_that_is_a_text_takes_what_looks_like_something_else(text: str) -> None:
    assert read_value(text, as_text=True) == text
    assert read_value("null", as_text=True) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a value is missing; give one, null for none, or '\"\"' for an empty text"),
        (" \t", "a value is missing"),
        ("{model: , name: x}", "a value is missing"),
        ("[1", "the value is not valid YAML (expected ',' or ']'"),
        ("[final] prompts.txt", "; a text that begins with [ goes between quotes"),
        ('"a" # b', "the value is not valid YAML"),
        ("[a, b] # both", "the value is not valid YAML"),
        ("{name: a, name: b}", "the value is not valid YAML ('name' is there twice)"),
        ("{[a]: b}", "the value is not valid YAML (a key is no text)"),
        ("[&a b, *a]", "the value is not valid YAML (&, * and ! begin no value)"),
        ("{name: !x y}", "&, * and ! begin no value"),
        ("[a]\n---\n[b]", "the value is not valid YAML"),
        ("[\x00]", "the value is not valid YAML (special characters are not allowed)"),
    ],
)
def test_what_is_no_value_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what the test looks at
        read_value(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.8,1", ["0.8", "1"]),
        ("run #1, run #2", ["run #1", "run #2"]),
        ("[0.9, 0.99],[0.8, 0.9]", ["[0.9, 0.99]", "[0.8, 0.9]"]),
        ("'a, b',c", ["'a, b'", "c"]),
        ("C: x,no,007,1e-4,", ["C: x", "no", "007", "1e-4"]),
        ("{kind: hpsv2, version: v2.0},{kind: hpsv2}", ["{kind: hpsv2, version: v2.0}", "{kind: hpsv2}"]),
        ("", []),
    ],
)
def test_values_of_a_list_stay_as_they_are_written(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["a,,b", "[a", "a],[b", "*a,b", "&a b"])
def test_what_is_no_list_of_values_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the value is not valid YAML"):
        split_values(text)


@pytest.mark.parametrize(
    ("key", "is_text"),
    [
        ("name", True),
        ("policy.model", True),
        ("policy.revision", True),  # or null
        ("sampler.dtype", True),
        ("reward.scorer.name", True),  # of whatever kind
        ("reward.scorer.version", True),
        ("learner.labels.zone", True),
        ("seed", False),
        ("learner.micro_batch", False),  # a number, too
        ("policy.lora_targets", False),
        ("reward.scorer", False),
        ("reward.scorer.batch_size", False),
        ("nothing.here", False),
    ],
)
def test_which_settings_are_texts(key: str, is_text: bool) -> None:
    assert takes_text(Config, key.split(".")) is is_text
