"""One self-contained HTML file of a run: no script, no network, every figure with its text alternative."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from raydense.config import ConfigError
from raydense.core.messages import command, duration
from raydense.files.durable import write_text
from raydense.report.by_step import by_step_figures
from raydense.report.curves import learning_figures, reward_figures, watch_figures
from raydense.report.pictures import SetGains, grid_pictures, prompt_gains
from raydense.report.run_data import RunData, read_run
from raydense.report.times import phase_totals, time_figures

FLEET = {  # what the ledger's columns are called
    "fleet/live_samplers": "samplers",
    "fleet/deaths": "sampler deaths",
    "fleet/lost": "units lost",
    "fleet/retried": "issued again",
}
MOST_PROMPTS = 200  # of a set in the table of gains


def write_report(root: Path, out: Path | None = None) -> Path:
    """Writes the report of the run in `root` to `out` (default: report.html there); returns where it is.

    Raises: ConfigError if `root` holds no run, or the file cannot be written.
    """
    target = out or root / "report.html"
    if target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out={target}: a report is HTML; give a name that ends in .html")
    page = render(read_run(root))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, page)
    except OSError as error:
        raise ConfigError(f"--out={target} cannot be written ({error.strerror}); give another file") from None
    return target


def render(run: RunData) -> str:
    """The page of a run as it is now."""
    environment = Environment(
        loader=PackageLoader("raydense.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": lambda value: number(value, "+"),
        "duration": duration,
        "tone": tone,
    }
    gains = prompt_gains(run)
    return environment.get_template("page.html").render(
        run=run,
        command=command,
        style=(files("raydense.report") / "page.css").read_text("utf-8"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        tiles=list(_tiles(run, gains)),
        rewards=list(reward_figures(run)),
        watch=list(watch_figures(run)),
        learning=[*learning_figures(run), *by_step_figures(run)],
        times=list(time_figures(run)),
        phases=phase_totals(run),
        pictures=grid_pictures(run),
        gains=gains,
        most_prompts=MOST_PROMPTS,
        stages=_stage_table(run),
        glance=_glance(run),
        fleet=list(dict.fromkeys(key for row in run.events("ledger") for key in row if key.startswith("fleet/"))),
        fleet_names=FLEET,
        starts=[{**row, "at": _time(row["time"])} for row in run.events("start")],
        skipped=[row["step"] for row in run.rows("step") if row.get("skipped")],
        suspected=[row["stage"] + 1 for row in run.rows("stage") if row.get("reward/hacking_suspected")],
        fallen=[row["stage"] + 1 for row in run.rows("stage") if row.get("reward/fallen")],
        worse_on=(run.status["summary"] or {}).get("worse_on", ()),
        config=run.config.to_yaml(),
    )


def _tiles(run: RunData, gains: list[SetGains]) -> Iterator[Mapping[str, str]]:
    """The few numbers that a reader looks for first."""
    scorer, progress = run.config.reward.scorer.name, run.status["progress"]
    for found in gains:
        for judge, mean in found.means.items():
            sure = (
                "" if mean.low != mean.low else f"95 % by prompt: {number(mean.low, '+')} to {number(mean.high, '+')}"
            )
            role = "trained on" if judge == scorer else "monitor"
            yield {"name": f"{judge}, {found.name} prompts", "value": number(mean.mean, "+"), "note": f"{role}; {sure}"}
    if not gains and run.status["rewards"]:
        first, last = run.status["rewards"][0], run.status["rewards"][-1]
        note = f"{number(first)} in stage 1; of the sampled pictures"
        yield {"name": f"{scorer}, stage {len(run.status['rewards'])}", "value": number(last), "note": note}
    done = f"of {progress['steps_total']:,}; stage {progress['stage']} of {progress['stages']}"
    yield {"name": "gradient steps", "value": f"{progress['steps']:,}", "note": done}
    images = sum(row["images"] for row in run.events("unit"))
    yield {
        "name": "pictures sampled",
        "value": f"{images:,}",
        "note": _count(len(run.rows("stage")), "stage", "stages"),
    }
    seconds = sum(phase_totals(run).values())
    yield {
        "name": "time at work",
        "value": duration(seconds),
        "note": _count(len(run.events("start")), "process", "processes"),
    }


def _stage_table(run: RunData) -> list[dict[str, Any]]:
    """A row a stage: its metrics, what of it was sampled and trained how fast, its ledger and faults."""
    by_stage: dict[int, dict[str, Any]] = {row["stage"]: {**row} for row in run.rows("stage")}
    for row in (*run.events("phase"), *run.events("ledger")):
        if row["stage"] in by_stage:
            facts = {key: value for key, value in row.items() if key not in ("kind", "stage", "step")}
            by_stage[row["stage"]].update(facts)
    for stage, row in by_stage.items():
        losses = [step["loss"] for step in run.rows("step") if step["stage"] == stage and "loss" in step]
        row["loss"] = sum(losses) / len(losses) if losses else None
    return [by_stage[stage] for stage in sorted(by_stage)]


def _glance(run: RunData) -> dict[str, str]:
    """The settings that a reader asks for first."""
    config = run.config
    train, steps, sampler = config.train, config.steps, config.sampler
    dynamics = steps.dynamics or "ddim"  # of earlier code, which had no other
    return {
        "base model": config.policy.model,
        "LoRA rank": str(config.policy.lora_rank),
        "trained on": config.reward.scorer.name,
        "monitors": ", ".join(run.judges[1:]) or "none",
        "steps T, η, guidance": f"{steps.count} of {dynamics}, {steps.eta:g}, {sampler.guidance_scale:g}",
        "loss": train.shown_loss,
        "discount γ": f"{steps.gamma:g}" if train.draws_steps else "none",
        "step draws, tuple": f"{steps.draws}, {train.tuple_size} ({train.tuple_choice.replace('_', ' and ')})",
        "R rolled out, K kept": f"{sampler.trajectories}, {sampler.keep}",
        "stages × groups": f"{config.stage.count} × {config.stage.groups:,}",
        "steps a stage × groups a step": f"{config.stage.steps:,} × {train.batch_groups}",
        "AdamW": f"lr {train.lr:g}, weight decay {train.weight_decay:g}, gradient norm ≤ {train.max_grad_norm:g}",
        "weights": train.shown_weights,
        "seed": str(config.seed),
    }


def number(value: float | None, sign: str = "") -> str:
    """Four digits, for people: 0.7725, 12.31, 1,234."""
    if value is None or math.isnan(value):
        return "–"
    digits = 0 if abs(value) >= 1000 else 4 if abs(value) < 10 else 2
    if 0 < abs(value) < 1e-3:
        return f"{value:{sign}.2e}"
    return f"{value:{sign},.{digits}f}".replace("-", "−")


def tone(value: float) -> str:
    """How a gain is coloured, beside its sign."""
    return "good" if value > 0 else "bad" if value < 0 else ""


def _count(count: int, one: str, several: str) -> str:
    return f"in {count} {one if count == 1 else several}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
