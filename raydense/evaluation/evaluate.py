"""`raydense evaluate`: base model and LoRAs on the same prompts and noise, judged by the same scorers, on the fleet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from raydense.config import Config, ConfigError
from raydense.core.interfaces import Fleet
from raydense.core.types import Scales
from raydense.evaluation.candidates import BASE, Model, Source, fit_models
from raydense.pipelines.base_model import BaseModel
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.pinning import Pinned
from raydense.planning.units import judged_prompts, read_prompt_sets
from raydense.prompts.prompt_sets import evenly_spaced, load_by_label, split_location
from raydense.prompts.sources import SET_SCHEME
from raydense.records.progress import ProgressDisplay
from raydense.records.scores import Judgement
from raydense.sections.rewards import RewardConfig, ScorerConfig
from raydense.sections.values import read_value
from raydense.training.judging import judge_prompts
from raydense.training.normalising import StageScales, is_zscored
from raydense.wiring.policies import family_for, resolved

STYLES = {"anime": "animation", "paintings": "painting"}  # the benchmark's keys as the paper's tables have them


@dataclass(frozen=True)
class Columns:
    """Of the table: prompts by column, whether they are styles of one set, which have a mean, and notes on reading."""

    prompts: Mapping[str, tuple[str, ...]]
    are_styles: bool = False
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(map(len, self.prompts.values()))


@dataclass(frozen=True)
class Evaluation:
    """What was judged: scores float32 [P, m] by model, and in each by column (style or prompt set) and scorer.

    config: resolved. scales: that a mixture's components were divided by. accepted: what is not as the runs were made
    from it.
    """

    config: Config
    columns: Columns
    judgements: Mapping[str, Judgement]
    images_per_prompt: int
    scales: Scales = ()
    accepted: tuple[str, ...] = ()


def read_columns(config: Config, locations: Sequence[str], limit: int | None) -> Columns:
    """The table's columns.

    A source with styles or categories has a column each; another is one, named by `NAME=LOCATION` or by where it comes
    from. Without a location: the configuration's own `train` and `unseen` prompts, as a run judges them.
    Args: limit: prompts a column, evenly spaced; None: all.
    Raises: ConfigError.
    """
    if not locations:
        judged = config.evaluate.model_copy(update={"prompts": limit} if limit else {})
        return Columns(judged_prompts(config.model_copy(update={"evaluate": judged}), read_prompt_sets(config)))
    columns: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    styles = 0
    for given in locations:
        named, equals, rest = given.partition("=")
        name, location = (named, rest) if equals and named.isidentifier() else ("", given)
        try:
            sets = load_by_label(location)
        except ValueError as error:
            raise ConfigError(f"--prompts={error}") from None
        for label, found in sets.items():
            title = STYLES.get(label, label) or name or _title(location)
            if title in columns:
                raise ConfigError(f"--prompts={given}: {title!r} is a column already; give another name, NAME=PROMPTS")
            columns[title] = evenly_spaced(found.prompts, limit or len(found.prompts))
            notes += found.notes
            styles += bool(label)
    return Columns(columns, are_styles=styles == len(columns) > 1, notes=tuple(notes))


def _title(location: str) -> str:
    """`unseen` of `/path/unseen.txt`, `paper-unseen` of `set://paper-unseen#index=0`."""
    source, _ = split_location(location)
    return source.removeprefix(SET_SCHEME).partition("?")[0] if source.startswith(SET_SCHEME) else Path(source).stem


def with_scorers(config: Config, scorers: Sequence[str]) -> Config:
    """The configuration with these judges in place of its own; each is YAML of a scorer, or a kind alone.

    Raises: ConfigError naming what does not fit.
    """
    if not scorers:
        return config
    adapter: TypeAdapter[Any] = TypeAdapter(ScorerConfig)
    built = []
    for text in scorers:
        try:
            value = read_value(text)
            built.append(adapter.validate_python({"kind": value} if isinstance(value, str) else value))
        except ValueError as error:  # pydantic's is one, too
            problems = [e["msg"] for e in error.errors()] if isinstance(error, ValidationError) else [str(error)]
            raise ConfigError(
                f"--scorer {text!r}: {'; '.join(' '.join(p.split()) for p in problems)}; "
                "expected such as --scorer '{kind: hpsv2, version: v2.1}'"
            ) from None
    try:
        reward = RewardConfig(scorer=built[0], monitors=tuple(built[1:]))
    except ValidationError as error:
        raise ConfigError(f"--scorer: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return config.model_copy(update={"reward": reward})


def evaluate(
    config: Config,
    pinned: Pinned,
    pipeline: PipelineFiles,
    sources: Sequence[Source],
    columns: Columns,
    images_per_prompt: int,
    *,
    local: bool,
    display: ProgressDisplay,
) -> Evaluation:
    """Draws and judges every model.

    Args: config: with its locations as written; pinned: as they are.
    Raises: ConfigError before anything starts if a LoRA or a scorer does not fit.
    """
    joint, models = fit_models(pinned.config, pipeline, sources, "LoRA")
    config = resolved(config, family_for(config, pipeline))
    judgements, scorer = {}, config.reward.scorer
    with sampling_fleet(joint, pipeline, pinned.base_model(), local) as fleet:
        for model in models:
            judgements[model.name] = _judge(model, columns, images_per_prompt, fleet, display)
    if not is_zscored(scorer):
        return Evaluation(config, columns, judgements, images_per_prompt, accepted=pinned.accepted)
    scales, whose = mixture_scales(scorer, sources, judgements[BASE])
    display.say(f"{scorer.name} is of z-scores by {whose}")
    restated = {name: scales.restate(judgement) for name, judgement in judgements.items()}
    return Evaluation(config, columns, restated, images_per_prompt, scales.of(0), pinned.accepted)


def mixture_scales(scorer: ScorerConfig, sources: Sequence[Source], base: Judgement) -> tuple[StageScales, str]:
    """What a mixture of z-scores divides by, and in words whose it is.

    That is what the first run trained with this mixture was judged with, so that its scores here are those that it gave
    itself; without one, the mean and standard deviation of the base model's pictures here.
    """
    if known := run_scales(scorer, sources):
        return known
    scales = StageScales(scorer, None)
    judges = next(iter(base.scores.values()))
    every = {judge: np.concatenate([by[judge] for by in base.scores.values()]) for judge in judges}
    scales.calibrate(Judgement({"train": every}))
    return scales, "the statistics of the base model's pictures here"


def run_scales(scorer: ScorerConfig, sources: Sequence[Source]) -> tuple[StageScales, str] | None:
    """Those of the first run that was trained with a mixture of z-scores, and in words whose they are."""
    for source in sources if is_zscored(scorer) else ():
        if source.run and source.config and source.config.reward.scorer == scorer:
            scales = StageScales(scorer, source.run)
            if 0 in scales:
                return scales, f"the first stage's statistics of {source.name}"
    return None


def _judge(
    model: Model,
    columns: Columns,
    images_per_prompt: int,
    fleet: Fleet[Any],
    display: ProgressDisplay,
) -> Judgement:
    drawn, total = 0, columns.total * images_per_prompt

    def progress(pictures: int) -> None:
        nonlocal drawn
        drawn += pictures
        display.update(f"judging {model.name}", drawn, total)

    display.update(f"judging {model.name}", 0, total)
    fleet.broadcast(model.weights)
    judgement = judge_prompts(columns.prompts, images_per_prompt, fleet, model.weights.version, progress)
    for name, failure in judgement.failures.items():
        display.say(f"the monitor {name} failed, and {model.name} has no score where it did: {failure}")
    return judgement


def without_learner(config: Config) -> Config:
    """The configuration with a learner that takes nothing, and is on no device that could be missing here."""
    learner = config.learner.model_copy(update={"num_cpus": 0.0, "num_gpus": 0.0, "device": "cpu"})
    return config.model_copy(update={"learner": learner})


@contextmanager
def sampling_fleet(config: Config, pipeline: PipelineFiles, base: BaseModel, local: bool) -> Iterator[Fleet[Any]]:
    """Samplers without a learner, which leaves them all that the machine or the cluster has."""
    alone = without_learner(config)
    if local:
        from raydense.fleets.local_runner import LocalFleet
        from raydense.wiring.roles import build_sampler

        yield LocalFleet(build_sampler(alone, files=pipeline), alone.seed)
    else:
        from raydense.fleets.ray_runner import sampling_fleet_on_ray

        with sampling_fleet_on_ray(alone, base) as fleet:
            yield fleet
