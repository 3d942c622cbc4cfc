"""`raydense sample`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from raydense.commands.common import AcceptChanges, Debug, Overrides, check_new_file, explained
from raydense.config import Config, ConfigError, changed_config, load_config
from raydense.core.terminal import open_console

if TYPE_CHECKING:
    from raydense.evaluation.candidates import Model
    from raydense.evaluation.sample import Drawing, Judge
    from raydense.pipelines.pipeline_files import PipelineFiles

EXAMPLE = 'Example: `raydense sample "a red circle" --lora runs/seven --base --trajectory --out circle.png`'
MAY_CHANGE = ("seed", "policy", "steps", "sampler", "evaluate")


def sample(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="A row of the grid each.")],
    lora: Annotated[
        list[str] | None, typer.Option(metavar="RUN|LORA", help="A run's LoRA, or one by file; repeatable.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Also the base model, with the same seeds.")] = False,
    images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt and model.")] = 4,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise. Default: the configuration's.")] = None,
    trajectory: Annotated[
        bool, typer.Option("--trajectory", help="Also a strip of the predicted pictures (x̂0) along the chain, judged.")
    ] = False,
    scorer: Annotated[
        str | None, typer.Option(metavar="YAML|KIND", help="Judge of the strip, or `none`. Default: the run's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG, JPEG or WebP file. Default: sample-TIME.png.")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="How to sample. Default: the run's.")] = None,
    preset: Annotated[str | None, typer.Option(help="A preset in place of --config.")] = None,
    overrides: Overrides = None,
    accept_changes: AcceptChanges = False,
    debug: Debug = False,
) -> None:
    """Draws prompts in this process: a grid, the base model beside the tuned ones, with the same noise."""
    with explained(debug):
        if not lora and not base:
            raise ConfigError("nothing to draw: give --lora, --base or both")
        out = _picture_file(out)
        if scorer and not trajectory:
            raise ConfigError(f"--scorer={scorer} judges the predicted pictures; add --trajectory")
        chosen = load_config(config_file, preset) if config_file or preset or not lora else None
        changes = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
        judged = trajectory and scorer != "none"
        drawn = _models(lora or [], base, chosen, changes, accept_changes, judged, scorer)
        strip = out.with_name(f"{out.stem}-trajectory{out.suffix}") if trajectory else None
        numbers = out.with_name(f"{out.stem}-trajectory.json") if judged else None
        for path in (out, *(file for file in (strip, numbers) if file)):
            check_new_file("--out", path, make_parent=True)
        from raydense.evaluation.sample import save_pictures

        drawings, failure = _draw(drawn, prompts, images, trajectory)
        typer.echo(f"pictures    {save_pictures(out, drawings)}")
        if strip:
            _show_chains(strip, drawn.config, drawings)
        if failure:
            raise failure
        if numbers:
            _show_scores(numbers, drawn.config, drawings)


def _picture_file(out: Path | None) -> Path:
    from raydense.records.grids import FORMATS

    out = out or Path(f"sample-{datetime.now():%Y%m%d-%H%M%S}.png")
    if out.suffix.lower() not in FORMATS:
        raise ConfigError(f"--out={out} does not say what to write; give a name that ends in {', '.join(FORMATS)}")
    return out


class _Drawn(NamedTuple):
    """What to draw with. Args: pipeline: with what is to be said of files. models: by their LoRAs."""

    config: Config
    pipeline: PipelineFiles
    models: list[Model]
    judge: Callable[[], Judge] | None


def _models(
    lora: list[str],
    base: bool,
    chosen: Config | None,
    changes: list[str],
    accept_changes: bool,
    judged: bool,
    scorer: str | None,
) -> _Drawn:
    """Args: judged: whether by `scorer`, or by the configuration's own."""
    from raydense.evaluation.candidates import (
        BASE,
        chain_notes,
        continue_sources,
        find_sources,
        fit_models,
        shared_config,
    )
    from raydense.evaluation.evaluate import with_scorers
    from raydense.evaluation.sample import Judge, judge_scales
    from raydense.planning.preflight import as_found, check_models, check_pipeline

    sources = find_sources(lora)
    config = shared_config(sources, chosen)
    config = changed_config(config, changes, MAY_CHANGE, "a drawing")
    if judged:
        config = with_scorers(config, [scorer] if scorer else [])
        config = config.model_copy(update={"reward": config.reward.model_copy(update={"monitors": ()})})
    unread = ("prompts.", *(["scorer "] if scorer or not judged else []))
    pinned = continue_sources(config, sources, accept_changes=accept_changes, leave_out=unread)
    pipeline = (check_models if judged else check_pipeline)(pinned.config)
    notes = chain_notes(pinned.config, pipeline, sources)
    joint, models = fit_models(as_found(pinned.config, pipeline), pipeline, sources, "--lora")
    drawn = [model for model in models if base or model.name != BASE]
    judge = partial(Judge, joint.reward.scorer, judge_scales(config.reward.scorer, sources)) if judged else None
    said = replace(pipeline, notes=(*notes, *pinned.notes, *pipeline.notes))
    return _Drawn(joint, said, drawn, judge)


def _draw(
    drawn: _Drawn, prompts: Sequence[str], images: int, trajectory: bool
) -> tuple[list[Drawing], Exception | None]:
    """Drawings, and why their judge failed."""
    from raydense.evaluation.sample import draw
    from raydense.records.progress import ProgressDisplay

    with ProgressDisplay(open_console()) as display:
        for note in drawn.pipeline.notes:
            display.say(note)

        def progress(done: int, total: int) -> None:
            display.update("drawing", done, total)

        judge = drawn.judge() if drawn.judge else None
        drawings = draw(
            drawn.config,
            drawn.pipeline,
            drawn.models,
            prompts,
            images,
            chains=trajectory,
            judge=judge,
            progress=progress,
        )
    return drawings, judge.failure if judge else None


def _show_chains(strip: Path, config: Config, drawings: Sequence[Drawing]) -> None:
    from raydense.evaluation.sample import distances, save_chains, shown_steps

    shown = save_chains(strip, config, drawings)
    typer.echo(f"trajectory  {shown}; distance of x̂0 from the finished picture, by step:")
    for drawing in drawings:
        steps = zip(shown_steps(config), distances(drawing), strict=True)
        typer.echo(f"  {drawing.model}: {drawing.prompt}: " + ", ".join(f"{t}: {d:.3f}" for t, d in steps))


def _show_scores(numbers: Path, config: Config, drawings: Sequence[Drawing]) -> None:
    from raydense.evaluation.sample import RULE, settled_at, shown_steps, write_chains

    judge = config.reward.scorer.name
    write_chains(numbers, config, judge, drawings)
    typer.echo(f"scores      {numbers}; {judge} of x̂0, by step; {RULE}:")
    for drawing in drawings:
        steps = ", ".join(f"{t}: {drawing.scores[t]:.3f}" for t in shown_steps(config))
        typer.echo(
            f"  {drawing.model}: {drawing.prompt}: {steps}, finished: {drawing.scores[-1]:.3f}; "
            f"settled at t = {settled_at(drawing.scores)}"
        )
    if len(drawings) > len(models := list(dict.fromkeys(drawing.model for drawing in drawings))):
        for model in models:
            settled = sorted(settled_at(drawing.scores) for drawing in drawings if drawing.model == model)
            low, middle, high = (settled[round(share * (len(settled) - 1))] for share in (0.25, 0.5, 0.75))
            typer.echo(f"  {model}, {len(settled)} prompts: settled at t = {middle} (median; quartiles {low}, {high})")
