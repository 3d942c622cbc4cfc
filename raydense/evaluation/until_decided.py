"""`raydense sweep --until-decided`: adds seeds until one comparison, named beforehand, is decided or none is left.

What is compared and when it is looked at is written into decision.json before the first run, and cannot change after:
only so has the rule (`core.sequential`) its error rate. The decision follows from the scores alone, look by look, so a
sweep that is cut and goes on decides the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raydense.config import ConfigError
from raydense.core.messages import first_few
from raydense.core.sequential import bounds
from raydense.core.statistics import Interval, mean_interval
from raydense.evaluation.outcomes import outcomes
from raydense.evaluation.paired import LAST_STEP
from raydense.evaluation.sweep import Settings, Trial, find_setting, label
from raydense.evaluation.sweep_runs import SweepRunner
from raydense.files.durable import json_if_there
from raydense.records.tables import shown, write_json

FILE = "decision.json"
FEWEST, MOST = 3, 30  # seeds at the first look; in all, where the command does not say
RULE = (
    "Lan-DeMets, error spent in proportion to the seeds, bounds exact for Student's t; at most 5 % of comparisons "
    "without a difference are ever decided"
)


@dataclass(frozen=True)
class Rule:
    """What is fixed before the first run. seeds: all that may be used, in their order; first: of the first look."""

    arm: Settings
    against: Settings
    prompts: str
    judge: str
    seeds: tuple[int, ...]
    first: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "rule": RULE,
            "arm": dict(self.arm),
            "against": dict(self.against),
            "prompts": self.prompts,
            "judge": self.judge,
            "seeds": list(self.seeds),
            "first_look": self.first,
        }


@dataclass(frozen=True)
class Look:
    """After so many seeds: the mean difference, and its interval of the rule (not Student's)."""

    seeds: int
    interval: Interval


@dataclass(frozen=True)
class Asked:
    """The options that name a comparison, as given."""

    compare: str | None = None
    on: str | None = None
    judge: str | None = None
    max_seeds: int | None = None


def most_seeds(until_decided: bool, asked: Asked, seeds: Sequence[int] | None) -> int | None:
    """How many seeds may be used; None without --until-decided. Raises: ConfigError for options that do not fit."""
    if not until_decided:
        if needless := [f"--{name.replace('_', '-')}" for name, value in asdict(asked).items() if value is not None]:
            raise ConfigError(f"{needless[0]} says how --until-decided decides; add that, or leave it out")
        return None
    most, given = asked.max_seeds or MOST, len(seeds or ())
    if not FEWEST <= given <= most:
        raise ConfigError(
            f"--until-decided begins with {FEWEST} seeds or more, and no more than --max-seeds={most}; --seeds gives "
            f"{given}; such as --seeds 101-105"
        )
    return most


def name_rule(trials: Sequence[Trial], given: int, against: Settings, asked: Asked) -> Rule:
    """The rule that the options name. Defaults: the only other arm, the unseen prompts, the judge that is trained on.

    Args: trials: of every arm with all seeds that may be used; given: so many of them before the first look.
    Raises: ConfigError for what does not name a comparison.
    """
    others = [settings for settings in dict.fromkeys(trial.settings for trial in trials) if settings != against]
    if not others:
        raise ConfigError("--until-decided compares two settings; give --grid two values")
    if asked.compare is None and len(others) > 1:
        names = first_few([repr(label(settings)) for settings in others])
        raise ConfigError(f"--until-decided decides one comparison; name the setting by --compare, one of {names}")
    arm = find_setting("--compare", asked.compare, others) if asked.compare is not None else others[0]
    config = trials[0].config
    sets = ["unseen", "train"] if config.prompts.unseen else ["train"]
    judges = list(dict.fromkeys(judge.name for judge in (config.reward.scorer, *config.reward.judges)))
    seeds = tuple(dict.fromkeys(trial.seed for trial in trials))
    return Rule(arm, against, _one_of("--on", asked.on, sets), _one_of("--judge", asked.judge, judges), seeds, given)


def _one_of(option: str, value: str | None, known: Sequence[str]) -> str:
    """The first where none is given."""
    if value is None:
        return known[0]
    if value not in known:
        raise ConfigError(f"{option}={value}: not in this configuration; allowed here: {', '.join(known)}")
    return value


def fix_rule(out: Path, rule: Rule, trials: Sequence[Trial]) -> tuple[float, ...]:
    """Writes the rule before the first run, or finds that it is there; returns its bounds, of each look.

    Raises: ConfigError if another rule is there.
    """
    before = read_decision(out)
    if before is None:
        limits = bounds(rule.first, len(rule.seeds))
        known = sum(trial.finished for trial in trials if trial.settings in (rule.arm, rule.against))
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / FILE, {**rule.as_dict(), "bounds": limits, "finished_before": known, "looks": []})
        return limits
    if changed := [key for key, value in rule.as_dict().items() if before.get(key) != value]:
        raise ConfigError(
            f"{out / FILE} fixed another rule when this sweep began ({', '.join(changed)}); a rule that changes "
            "after a look has no error rate: give the same options, or another --out"
        )
    return tuple(before["bounds"])


def read_decision(out: Path) -> Mapping[str, Any] | None:
    """What a sweep until decided wrote; None of another sweep."""
    content: Mapping[str, Any] | None = json_if_there(out / FILE)
    return content


def looks(rule: Rule, limits: Sequence[float], differences: Mapping[int, float]) -> list[Look]:
    """Every look that these differences by seed allow, in order; the last is the first whose interval excludes 0."""
    found: list[Look] = []
    for count, limit in enumerate(limits, rule.first):
        seeds = rule.seeds[:count]
        if not all(seed in differences for seed in seeds):
            break
        found.append(Look(count, mean_interval([differences[seed] for seed in seeds], limit)))
        if found[-1].interval.side:
            break
    return found


def run_until_decided(out: Path, rule: Rule, trials: Sequence[Trial], runner: SweepRunner) -> list[Trial]:
    """Runs the given seeds of every arm, then further ones of the two compared, and writes every look.

    As many seeds go side by side as the runner has room for; that changes no look, as these go seed by seed.

    Args: trials: of every arm with all seeds of the rule.
    Returns: those that were needed. A run that failed ends it; the runner names it.
    """
    limits = fix_rule(out, rule, trials)
    needed = [trial for trial in trials if trial.seed in rule.seeds[: rule.first]]
    both = [trial for trial in trials if trial.settings in (rule.arm, rule.against)]
    ready = rule.first
    runner.run(needed)
    while not runner.failed:
        found = looks(rule, limits, _differences(rule, both))
        _write_looks(out, found, len(rule.seeds))
        if found[-1].interval.side or ready == len(rule.seeds):
            break
        seeds = rule.seeds[ready : ready + max(1, runner.jobs // 2)]
        more = [trial for trial in both if trial.seed in seeds]
        needed += more
        ready += len(seeds)
        if waiting := [trial for trial in more if not trial.finished]:
            runner.run(waiting)
    return needed


def _differences(rule: Rule, both: Sequence[Trial]) -> dict[int, float]:
    """Of the runs' results, by seed. Raises: RuntimeError if a seed has finished of which the judge knows nothing."""
    found: dict[int, float] = {}
    for o in outcomes(both, rule.against):
        named = o.arm.settings == rule.arm and (o.prompts, o.judge) == (rule.prompts, rule.judge)
        if named and o.arm.weights != LAST_STEP and o.difference:
            found = dict(o.difference.by_seed)
    for seed in rule.seeds:
        if seed not in found and all(trial.finished for trial in both if trial.seed == seed):
            raise RuntimeError(f"seed {seed}: {rule.judge} gave no scores on {rule.prompts} prompts to compare")
    return found


def _write_looks(out: Path, found: Sequence[Look], most: int) -> None:
    last = found[-1]
    verdict = last.interval.side
    rows = [{"seeds": look.seeds, **look.interval.as_dict()} for look in found]
    ended = verdict is not None or last.seeds == most
    write_json(out / FILE, {**(read_decision(out) or {}), "looks": rows, "ended": ended, "decided": verdict})


def decision_notes(out: Path) -> list[str]:
    """What was decided, in words, and what the tables' intervals are then worth; nothing of another sweep."""
    content = read_decision(out)
    if content is None:
        return []
    arm, against = (label(tuple(content[name].items())) for name in ("arm", "against"))
    where = f"{content['prompts']} prompts, judge {content['judge']}"
    first, most = content["first_look"], len(content["seeds"])
    if content["looks"]:
        last = content["looks"][-1]
        found = f"{shown(Interval(last['mean'], last['low'], last['high']), '+')} after {last['seeds']} seeds ({where})"
        if content["decided"]:
            line = f"decided: {arm} is {content['decided']} than {against}: difference {found}"
        else:
            state = "not decided, and no seed is left" if content["ended"] else "not decided yet"
            line = f"{state}: {arm} against {against}: difference {found}"
    else:
        line = f"not decided yet: {arm} against {against} ({where}): the first look is after {first} seeds"
    seen = content["finished_before"]
    return [
        line,
        f"rule: a look after each of {first} to {most} seeds; {content['rule']}. The tables' intervals are Student's, "
        "which are not valid for runs that this rule stopped; and a difference that ended a sweep is larger, on "
        "average, than the true one",
        *(
            [f"{seen} runs had finished before the rule was fixed; it holds if nobody knew their scores"]
            if seen
            else []
        ),
    ]
