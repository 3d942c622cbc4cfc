"""Plain prompt files, and which prompt a group of a run has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydense.prompts.prompt_sets import evenly_spaced, prompt_at, read_prompts


def write(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "prompts.txt").write_bytes(content)
    return str(tmp_path / "prompts.txt")


def test_one_prompt_a_line(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path, "a cat \n  ein Käfer\r\na dog".encode())) == ("a cat", "ein Käfer", "a dog")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a cat\n\na dog\n", "line 2 is empty"),
        (b"", "holds no prompt"),
        (b"a cat\n\xff\n", "line 2 is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name_and_place(tmp_path: Path, content: bytes, said: str) -> None:
    location = write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"{location}: .*{said}"):
        read_prompts(location)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.txt: cannot be read \(No such file"):
        read_prompts(str(tmp_path / "absent.txt"))


@given(st.integers(1, 12), st.integers(0, 2**40))
def test_every_pass_visits_every_prompt_once(count: int, seed: int) -> None:
    prompts = [f"prompt {i}" for i in range(count)]
    for number in range(3):
        visited = [prompt_at(prompts, number * count + i, seed) for i in range(count)]
        assert sorted(visited) == sorted(prompts)


def test_passes_are_shuffled_anew_and_by_the_seed() -> None:
    prompts = [f"prompt {i}" for i in range(20)]

    def one_pass(number: int, seed: int) -> list[str]:
        return [prompt_at(prompts, number * 20 + i, seed) for i in range(20)]

    assert one_pass(0, 1) == one_pass(0, 1)
    assert len({tuple(one_pass(n, s)) for n, s in ((0, 1), (1, 1), (0, 2))}) == 3
    assert one_pass(0, 1) != prompts


def test_evaluation_prompts_are_spread_over_the_set() -> None:
    prompts = tuple("abcdefghij")
    assert evenly_spaced(prompts, 5) == ("a", "c", "e", "g", "i")
    assert evenly_spaced(prompts, 3) == ("a", "d", "g")
    assert evenly_spaced(prompts, 10) == evenly_spaced(prompts, 99) == prompts
