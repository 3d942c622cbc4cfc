"""A user's own scorer, named as module:function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raydense.core.interfaces import SharedStateChanged
from raydense.rewards.function import FunctionScorer

MODULE = """
import numpy as np
import torch

def length(images, prompts):
    print("scoring")
    return [len(prompt) + float(image.mean()) for image, prompt in zip(images, prompts)]

buffer = np.zeros(2, np.float32)

def reusing(images, prompts):
    buffer[:] += 1
    return buffer

def changing(images, prompts):
    torch.set_default_dtype(torch.float64)
    return [0.0] * len(images)

answer = None

def answering(images, prompts):
    return answer

number = 3
"""
IMAGES = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (10, 20)])


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_scorer.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorer", raising=False)


def test_its_numbers_are_the_scores_and_what_it_prints_is_not_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scores = FunctionScorer("length", "my_scorer:length").score(IMAGES, ["abc", "a"])
    assert (scores.tolist(), scores.dtype) == ([13.0, 21.0], np.float32)
    assert capsys.readouterr() == ("", "scoring\n")


def answer(value: Any) -> np.ndarray:
    scorer = FunctionScorer("mine", "my_scorer:answering")
    sys.modules["my_scorer"].answer = value  # type: ignore[attr-defined]
    return scorer.score(IMAGES, ["a", "b"])


graph = torch.tensor([0.5, 2.0], requires_grad=True)


@pytest.mark.parametrize(
    "value",
    [
        [0.5, 2.0],
        (0.5, np.float16(2)),
        np.array([0.5, 2.0]),
        torch.tensor([0.5, 2.0], dtype=torch.bfloat16),
        torch.tensor([0.5, 2.0], dtype=torch.float64),
        graph * 1,
        (graph * 1).to(torch.bfloat16),
        list(graph * 1),
        [torch.tensor(0.5, dtype=torch.bfloat16), 2],
    ],
    ids=str,
)
def test_numbers_in_any_dress_are_taken(value: Any) -> None:
    scores = answer(value)
    assert (scores.tolist(), scores.dtype) == ([0.5, 2.0], np.float32)


@pytest.mark.parametrize("value", [[True, False], np.array([True, False]), torch.tensor([1, 0])], ids=str)
def test_a_yes_is_one_and_a_no_is_nothing(value: Any) -> None:
    assert answer(value).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.0, r"it gave shape \(\) for 2 images; expected one number each"),
        ([1.0], r"it gave shape \(1,\) for 2 images"),
        ([[1.0], [2.0]], r"it gave shape \(2, 1\) for 2 images"),
        (torch.zeros(2, 1), r"it gave shape \(2, 1\) for 2 images"),
        (torch.zeros(3), r"it gave shape \(3,\) for 2 images"),
        (["0.5", "2"], "it gave <U3 for 2 images; expected one number each"),
        ([1j, 2.0], "it gave complex128 for 2 images"),
        (torch.tensor([1j, 2.0]), "it gave complex64 for 2 images"),
        (None, "it gave object for 2 images"),
        ([None, 1.0], "it gave object for 2 images"),
        ({"a": 1.0, "b": 2.0}, "it gave object for 2 images"),
        ((x for x in (1.0, 2.0)), "it gave object for 2 images"),
        ([[1.0], [2.0, 3.0]], "inhomogeneous"),
    ],
)
def test_what_is_not_a_number_an_image_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        answer(value)


def test_a_function_may_use_its_array_again() -> None:
    scorer = FunctionScorer("mine", "my_scorer:reusing")
    first, second = (scorer.score(IMAGES, ["a", "b"]) for _ in range(2))
    assert (first.tolist(), second.tolist()) == ([1.0, 1.0], [2.0, 2.0])


def test_a_function_that_changes_the_process_is_named() -> None:
    with pytest.raises(SharedStateChanged, match=r"^scorer mine changed torch's default dtype from torch.float32 to"):
        FunctionScorer("mine", "my_scorer:changing").score(IMAGES, ["a", "b"])
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("target", ["no_such_module:f", "my_scorer:absent", "my_scorer:number"])
def test_a_target_that_is_no_function_is_named(target: str) -> None:
    with pytest.raises(ValueError, match=f"scorer mine: target={target} (cannot be imported|is not callable)"):
        FunctionScorer("mine", target)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("def score(:", "cannot be imported (SyntaxError: "),
        ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("import sys; sys.exit(3)", "cannot be imported (SystemExit: 3)"),
        ("import no_such_module", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"),
        ("import torch; torch.set_grad_enabled(False)", "its import of broken changed torch's grad mode from True to"),
        ("import os; os.chdir('/')", "its import of broken changed the working directory from "),
    ],
    ids=lambda text: text[:20],
)
def test_a_module_that_cannot_be_imported_as_it_is(
    content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text(content)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ValueError, match=r"^scorer mine: target=broken:score") as caught:
        FunctionScorer("mine", "broken:score")
    assert said in str(caught.value)
    assert torch.is_grad_enabled()


def test_an_installed_command_finds_a_module_in_the_current_directory(warm_python: Path, tmp_path: Path) -> None:
    (tmp_path / "my_scores.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    command = [warm_python, Path(sys.executable).with_name("raydense"), "train", "--dry-run"]
    command += ["--set", "reward.scorer={kind: callable, name: bright, target: 'my_scores:bright'}"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
