"""A user's own scorer, named as module:function."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from raydense.rewards.function import FunctionScorer

MODULE = """
def length(images, prompts):
    return [len(prompt) + float(image.mean()) for image, prompt in zip(images, prompts)]

def one_for_all(images, prompts):
    return 1.0

number = 3
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorer.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorer", raising=False)


def test_its_numbers_are_the_scores() -> None:
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (10, 20)])
    scores = FunctionScorer("length", "my_scorer:length").score(images, ["abc", "a"])
    assert (scores.tolist(), scores.dtype) == ([13.0, 21.0], np.float32)


def test_one_score_for_all_images_is_refused() -> None:
    scorer = FunctionScorer("one", "my_scorer:one_for_all")
    with pytest.raises(ValueError, match=r"scorer one gave shape \(\) for 2 images; expected one score each"):
        scorer.score(np.zeros((2, 1, 1, 3), np.uint8), ["a", "b"])


@pytest.mark.parametrize("target", ["no_such_module:f", "my_scorer:absent", "my_scorer:number"])
def test_a_target_that_is_no_function_is_named(target: str) -> None:
    with pytest.raises(ValueError, match=f"scorer mine: target={target} (cannot be imported|is not callable)"):
        FunctionScorer("mine", target)
