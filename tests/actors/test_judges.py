"""Judges are asked side by side: what one does to its pictures, prompts or process is its own affair."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from actors.judges import Judges, Verdict
from raydense.core.interfaces import ScoreError, SharedStateChanged
from raydense.rewards.mixture import MixtureScorer

IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
PROMPTS = ["a cat", "a dog"]


class Judge:
    """Scores by a function of (images, prompts)."""

    def __init__(self, name: str, score: Callable[..., Any]) -> None:
        self.name, self.score = name, score


def mean(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    return images.mean(axis=(1, 2, 3)).astype(np.float32) + [len(prompt) for prompt in prompts]


def vandal(images: np.ndarray, prompts: list[str]) -> np.ndarray:
    images[:] = 0
    prompts.clear()
    return np.zeros(len(images), np.float32)


def raising(error: BaseException) -> Callable[..., Any]:
    def score(images: np.ndarray, prompts: Sequence[str]) -> Any:
        raise error

    return score


def ask(judges: Judges) -> Verdict:
    return judges.judge(IMAGES, PROMPTS, judges.damage)


def test_what_a_judge_does_to_its_pictures_and_prompts_no_other_sees() -> None:
    images, prompts = IMAGES.copy(), list(PROMPTS)
    mixture = MixtureScorer("both", [Judge("vandal", vandal), Judge("mean", mean)], {"vandal": 1.0, "mean": 2.0})
    judges = Judges(mixture, [Judge("another vandal", vandal), Judge("last", mean)])
    scores = judges.judge(images, prompts, 0).scores
    assert scores["mean"].tolist() == scores["last"].tolist() == mean(IMAGES, PROMPTS).tolist()
    assert scores["both"].tolist() == (2 * mean(IMAGES, PROMPTS)).tolist()
    assert np.array_equal(images, IMAGES)
    assert prompts == PROMPTS


FAILURES = {
    "SystemExit: 3": SystemExit(3),
    "SystemExit: None": SystemExit(None),
    "GeneratorExit: GeneratorExit": GeneratorExit(),
    "StopIteration: StopIteration": StopIteration(),
    "KeyboardInterrupt: KeyboardInterrupt": KeyboardInterrupt(),
    "MemoryError: too much": MemoryError("too much"),
    "TimeoutError: two lines": TimeoutError("two\nlines"),
}


@pytest.mark.parametrize("said", FAILURES)
def test_whatever_a_judge_raises_is_its_own_failure_with_its_name(said: str) -> None:
    broken = Judge("broken", raising(FAILURES[said]))
    line = f"scorer broken failed on the prompt 'a cat' or one of the 1 prompts beside it: {said}"
    results: list[Any] = []

    def in_a_samplers_thread() -> None:  # where no Ctrl-C arrives
        verdict = ask(Judges(Judge("reward", mean), [broken, Judge("other", mean)]))
        results.append(verdict)
        with pytest.raises(ScoreError) as caught:
            ask(Judges(broken, []))
        results.append(str(caught.value))
        with pytest.raises(ScoreError):
            ask(Judges(MixtureScorer("both", [broken], {"broken": 1.0}), []))
        results.append("a component is part of the reward")

    thread = threading.Thread(target=in_a_samplers_thread)
    thread.start()
    thread.join()
    verdict, of_the_reward, _ = results
    assert of_the_reward == line
    assert verdict.failures == {"broken": line}
    assert np.isnan(verdict.scores["broken"]).all()
    assert verdict.scores["other"].tolist() == verdict.scores["reward"].tolist()


def test_a_ctrl_c_goes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        ask(Judges(Judge("reward", mean), [Judge("slow", raising(KeyboardInterrupt()))]))


@pytest.mark.parametrize("role", ["reward", "monitor"])
def test_who_changes_the_process_costs_more_than_its_own_scores(role: str) -> None:
    calls = iter([SharedStateChanged("scorer x changed torch's default dtype"), None])

    def score(images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        if error := next(calls):
            raise error
        return mean(images, prompts)

    changing = Judge("x", score)
    judges = Judges(changing, []) if role == "reward" else Judges(Judge("reward", mean), [changing])
    began = judges.damage
    with pytest.raises(SharedStateChanged, match=r"^scorer x changed torch's default dtype$"):
        ask(judges)
    with pytest.raises(SharedStateChanged, match="dtype; these pictures were made meanwhile"):
        judges.judge(IMAGES, PROMPTS, began)
    assert ask(judges).scores["x"].tolist() == mean(IMAGES, PROMPTS).tolist()
