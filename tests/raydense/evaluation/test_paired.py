"""Arms of a sweep against each other, seed by seed, from written runs whose gains are known."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from written_runs import write_run

from raydense.config import load_config
from raydense.core.statistics import mean_interval
from raydense.evaluation.outcomes import Outcome, outcomes
from raydense.evaluation.paired import Arm, reference
from raydense.evaluation.sweep import Settings, Trial
from raydense.evaluation.sweep_table import write_results

LOW, HIGH = ((("steps.gamma", "0.8"),), (("steps.gamma", "1"),))
GAINS = {LOW: [0.01, 0.02, 0.03, 0.02, 0.01], HIGH: [0.05, 0.05, 0.08, 0.01, 0.06]}
DIFFERENCES = np.subtract(GAINS[HIGH], GAINS[LOW])
Trials = Callable[..., list[Trial]]


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    config = load_config()

    def make(settings: Settings, seeds: int = 5) -> list[Trial]:
        name = "-".join(value for _, value in settings)
        return [Trial(settings, seed, (), config, tmp_path / f"{name},{seed}") for seed in range(seeds)]

    return make


@pytest.fixture
def swept(trials: Trials) -> list[Trial]:
    for settings, gains in GAINS.items():
        for trial, gain in zip(trials(settings), gains, strict=True):
            write_run(trial.directory, {"unseen": gain})
    return [*trials(LOW), *trials(HIGH)]


def only(found: list[Outcome], settings: Settings, weights: str = "") -> Outcome:
    (outcome,) = (o for o in found if o.arm == Arm(settings, weights))
    return outcome


def test_a_difference_is_taken_seed_by_seed(swept: list[Trial]) -> None:
    found = outcomes(swept)
    assert only(found, LOW).difference is None
    difference = only(found, HIGH).difference
    assert difference is not None
    assert difference.against == Arm(LOW)
    assert list(difference.by_seed.values()) == pytest.approx(DIFFERENCES)
    expected = mean_interval(DIFFERENCES)
    assert (difference.interval.mean, difference.interval.low) == pytest.approx((expected.mean, expected.low))
    assert difference.sign_p == pytest.approx(2 * (1 + 5) / 32)  # four of five above 0
    assert difference.needed == 7  # 0.032 with a spread of 0.0249: effect 1.29
    assert difference.verdict == "higher"


def test_the_other_way_round_it_has_the_other_sign(swept: list[Trial]) -> None:
    found = outcomes(swept, HIGH)
    assert only(found, HIGH).difference is None
    difference = only(found, LOW).difference
    assert difference is not None
    assert list(difference.by_seed.values()) == pytest.approx(-DIFFERENCES)
    assert difference.verdict == "lower"


def test_seeds_that_one_arm_lacks_are_left_out(swept: list[Trial]) -> None:
    (swept[-1].directory / "summary.json").unlink()  # as of a run that is going on
    difference = only(outcomes(swept), HIGH).difference
    assert difference is not None
    assert list(difference.by_seed) == [0, 1, 2, 3]
    for trial in swept[-4:]:
        (trial.directory / "summary.json").unlink(missing_ok=True)
    difference = only(outcomes(swept), HIGH).difference
    assert difference is not None
    assert math.isnan(difference.interval.low)
    assert (difference.needed, difference.verdict) == (None, "not decided")


def test_the_table_says_it_in_words(swept: list[Trial], tmp_path: Path) -> None:
    plain = write_results(tmp_path, swept)
    assert len(plain.sheets) == 1
    results = write_results(tmp_path, swept, paired=True)
    assert dict(zip(results.sheets[1].columns, results.sheets[1].rows[0], strict=True)) == {
        "setting": "gamma=1",
        "prompts": "unseen",
        "judge": "clip",
        "against": "gamma=0.8",
        "difference": "+0.0320 [+0.0011, +0.0629]",
        "95 % says": "higher",
        "seeds above 0": "4 of 5",
        "sign test p": "0.375",
        "seeds needed": "7",
    }
    assert results.notes[0].startswith(
        "seeds needed: a paired t test at 5 %, two-sided, shows a difference of this size"
    )
    assert "| gamma=1 | unseen | clip | gamma=0.8 | +0.0320 [" in (tmp_path / "sweep.md").read_text()


def test_a_cell_lists_a_few_gains_and_of_many_the_ends(swept: list[Trial], tmp_path: Path) -> None:
    assert [row[-1] for row in write_results(tmp_path, swept).sheets[0].rows] == [
        "5 seeds: +0.010 to +0.030",
        "5 seeds: +0.010 to +0.080",
    ]
    few = [trial for trial in swept if trial.seed < 2]
    assert write_results(tmp_path, few).sheets[0].rows[0][-1] == "+0.010, +0.020"


def test_machines_get_all_of_it(swept: list[Trial], tmp_path: Path) -> None:
    write_results(tmp_path, swept)
    first, second = json.loads((tmp_path / "sweep.json").read_text())["outcomes"]
    assert first["difference"] is None
    found = second["difference"]
    assert found["against"] == {"steps.gamma": "0.8", "weights": ""}
    assert found["by_seed"] == pytest.approx(DIFFERENCES)
    assert (found["seeds"], found["sign_test_p"], found["seeds_needed"]) == ([0, 1, 2, 3, 4], 0.375, 7)
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert (rows[0]["against"], rows[0]["difference"], rows[0]["seeds_needed"]) == ("", "", "")
    assert (rows[1]["against"], rows[1]["pairs"], rows[1]["seeds_needed"]) == ("gamma=0.8", "5", "7")
    assert float(rows[1]["difference_low"]) == found["low"]


def test_the_plot_has_a_row_more(swept: list[Trial], tmp_path: Path) -> None:
    heights = []
    for paired in (False, True):
        write_results(tmp_path, swept, paired=paired)
        with Image.open(tmp_path / "sweep.png") as picture:
            heights.append(picture.height)
    assert heights[1] - heights[0] == 3 * 120


def test_many_differences_come_with_a_warning(trials: Trials, swept: list[Trial], tmp_path: Path) -> None:
    third = trials((("steps.gamma", "0.5"),))
    for trial in third:
        write_run(trial.directory, {"unseen": 0.01 * trial.seed})
    notes = write_results(tmp_path, [*swept, *third], paired=True).notes
    assert (
        sum(note.startswith("2 differences of 95 % each: where nothing differs, one in twenty") for note in notes) == 1
    )


def test_arms_with_other_keys_are_one_spreadsheet(trials: Trials, tmp_path: Path) -> None:
    arms = ((("train.objective", "a"), ("train.lr", "1e-4")), (("steps.gamma", "1"),))
    for settings in arms:
        for trial in trials(settings, 2):
            write_run(trial.directory, {"unseen": 0.1})
    write_results(tmp_path, [trial for settings in arms for trial in trials(settings, 2)], paired=True)
    with (tmp_path / "sweep.csv").open() as file:
        rows = [[row[key] for key in ("train.objective", "train.lr", "steps.gamma")] for row in csv.DictReader(file)]
    assert rows == [["a", "1e-4", ""], ["", "", "1"]]


# -- what is not like with like -------------------------------------------------------------------------------


def test_other_prompts_are_said(trials: Trials, tmp_path: Path) -> None:
    for settings, prompts in ((LOW, ("a cat", "a dog")), (HIGH, ("a cat", "a cow"))):
        for trial in trials(settings):
            write_run(trial.directory, {"unseen": 0.1}, prompts=prompts)
    notes = write_results(tmp_path, [*trials(LOW), *trials(HIGH)]).notes
    assert notes == ("gamma=1 against gamma=0.8: judged on other unseen prompts: not like with like",)


def test_compute_is_a_column_where_a_run_has_it(trials: Trials, swept: list[Trial], tmp_path: Path) -> None:
    assert "network rows" not in write_results(tmp_path, swept).sheets[0].columns
    for trial in trials(HIGH):
        rows = {"sampler": {"forward": 2000 + trial.seed}, "learner": {"backward": 40}, "judging": {"forward": 9}}
        write_run(trial.directory, {"unseen": 0.1}, rows=rows)
    results = write_results(tmp_path, swept)
    assert results.sheets[0].columns[-1] == "network rows"
    assert [row[-1] for row in results.sheets[0].rows] == ["-", "2,042"]
    assert results.sheets[1].columns == ("setting", "sampler forward", "learner backward")
    assert results.sheets[1].rows == (("gamma=0.8", "-", "-"), ("gamma=1", "2,002", "40"))
    assert results.notes == ()  # what is not known is not unequal
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["network_rows"] for row in csv.DictReader(file)] == ["", "2042.0"]


def test_unequal_compute_is_said_once(trials: Trials, tmp_path: Path) -> None:
    for settings, rows in ((LOW, 100), (HIGH, 150)):
        for trial in trials(settings):
            gains = {"train": 0.1, "unseen": 0.1}
            write_run(trial.directory, gains, last_step=gains, rows={"sampler": {"forward": rows}})
    notes = write_results(tmp_path, [*trials(LOW), *trials(HIGH)]).notes
    said = "not at equal compute: rows of the network: sampler forward 150 against 100"
    assert notes == (f"gamma=1 against gamma=0.8: {said}",)


# -- weights and their average --------------------------------------------------------------------------------


def test_runs_that_average_their_weights_have_a_row_for_each(
    trials: Trials, swept: list[Trial], tmp_path: Path
) -> None:
    for trial, gain in zip(trials(HIGH), GAINS[HIGH], strict=True):
        write_run(trial.directory, {"unseen": gain}, last_step={"unseen": gain - 0.02 * (trial.seed % 2)})
    found = outcomes(swept)
    assert [o.arm for o in found] == [Arm(LOW), Arm(HIGH, "averaged"), Arm(HIGH, "last step")]
    assert list(found[2].gains.values()) == pytest.approx(np.subtract(GAINS[HIGH], [0, 0.02, 0, 0.02, 0]))
    assert found[1].difference is not None and found[1].difference.against == Arm(LOW)
    sheet = write_results(tmp_path, swept).sheets[0]
    assert sheet.columns[:2] == ("setting", "weights")
    assert [row[:2] for row in sheet.rows] == [("gamma=0.8", "–"), ("gamma=1", "averaged"), ("gamma=1", "last step")]
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["weights"] for row in csv.DictReader(file)] == ["", "averaged", "last step"]


def test_whom_an_arm_is_compared_with() -> None:
    both = [Arm(s, w) for s in (LOW, HIGH) for w in ("averaged", "last step")]
    assert [reference(arm, LOW, both) for arm in both] == [None, both[0], both[0], both[1]]
    mixed = [Arm(LOW), *both[2:]]
    assert [reference(arm, LOW, mixed) for arm in mixed] == [None, Arm(LOW), Arm(LOW)]
    assert [reference(arm, HIGH, mixed) for arm in mixed] == [both[2], None, both[2]]


# -- scores that a monitor did not give -----------------------------------------------------------------------


def test_a_prompt_that_a_monitor_did_not_score_is_left_out(trials: Trials) -> None:
    for trial in trials(LOW, 3):
        write_run(trial.directory, {"unseen": 0.1})
        scores = json.loads((trial.directory / "scores.json").read_text())
        first, second = scores["unseen"].values()
        first["clip"]["after"][1] = None
        if trial.seed == 2:
            second["clip"]["after"][0] = None
        (trial.directory / "scores.json").write_text(json.dumps(scores))
    (found,) = outcomes(trials(LOW, 3))
    assert list(found.gains) == [0, 1]  # of the third nothing is known
    assert list(found.gains.values()) == pytest.approx([0.1, 0.1])
    assert (found.before, found.after) == pytest.approx((0.3, 0.4))


def test_prompts_that_a_judge_does_not_know_in_one_arm_count_in_neither(swept: list[Trial]) -> None:
    """Else prompts that gain more than others would be a difference of the arms."""
    for trial in (swept[4], swept[-1]):  # seed 4: in both arms the first prompt gains 0.1 more
        path = trial.directory / "scores.json"
        scores = json.loads(path.read_text())
        judged = scores["unseen"]["unseen: a cat"]["clip"]
        judged["after"] = [value + 0.1 for value in judged["after"]]
        if trial is swept[-1]:
            judged["after"][1] = None
        path.write_text(json.dumps(scores))
    found = only(outcomes(swept), HIGH)
    assert found.gains[4] == pytest.approx(0.06)  # of the one prompt that is known
    assert found.difference is not None
    assert list(found.difference.by_seed.values()) == pytest.approx(DIFFERENCES)
