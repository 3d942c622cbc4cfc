"""The plan of a run as people read it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from raydense.config import Config
from raydense.planning.compute import NetworkRows
from raydense.planning.cost import Cost
from raydense.planning.dry_run import STORE_SHARE, Plan, sampler_devices, size
from raydense.wiring.policies import COMPILING_PAYS


def show_plan(config: Config, plan: Plan, cost: Cost, console: Console) -> None:
    """Prints the plan as a table, then what it assumes."""
    table = Table(
        "", "what this run does and needs", show_header=False, title=f"{config.name}: the plan", title_justify="left"
    )
    for name, value in _rows(config, plan, cost):
        table.add_row(name, value)
    console.print(table)
    left_out = "loading, checkpoints and data transfer are left out, and the scorers' work unless rates are measured"
    for note in (*plan.notes, f"{left_out}; memory is an estimate"):
        console.print(f"note: {note}")


def _rows(config: Config, plan: Plan, cost: Cost) -> list[tuple[str, str]]:
    stage, fleet = config.stage, config.samplers
    store = plan.replay_bytes + 2 * plan.lora_bytes
    return [
        ("images", f"{plan.images:,} rolled out ({stage.count} stages x {stage.groups:,} groups x "
                   f"{config.sampler.trajectories}), {plan.judged_images:,} for judging and grids"),
        ("gradient steps", f"{plan.gradient_steps:,} ({stage.steps:,} a stage), each on "
                           f"{config.train.batch_groups} groups"),
        ("LoRA", f"rank {config.policy.lora_rank}: {plan.lora_parameters:,} values, {size(plan.lora_bytes)}; "
                 f"{plan.network}: {plan.unet_parameters:,}"),
        ("replay", f"{size(plan.replay_bytes)}: {stage.held} of {stage.count} stages at once "
                   f"({stage.groups:,} groups of {size(plan.group_bytes)} each)"),
        ("object store", f"{size(store)}: Ray's default of {STORE_SHARE:.0%} gives it on nodes with "
                         f"{size(store / STORE_SHARE)} of memory in all; beyond it, Ray spills to disk"),
        ("disk", f"{size(plan.segment_bytes)} of segments, {size(plan.checkpoint_bytes)} of checkpoints"),
        ("memory, a sampler", f"{size(plan.sampler_gpu_bytes)} on its device ({config.sampler.dtype}, "
                              f"{config.sampler.prompts_at_once * config.sampler.trajectories} images at once)"),
        ("memory, the learner", f"{size(plan.learner_gpu_bytes)} on its device ({config.learner.dtype}, "
                                f"micro-batch {config.learner.micro_batch or 'whole'})"),
        ("compiled", _compiled(config, plan.sampled_rows)),
        ("rows of the network", _network_rows(plan.network_rows)),
        ("work", f"{plan.sampling_flops:.2e} FLOP sampling ({plan.image_flops / 1e12:.4g} TFLOP an image), "
                 f"{plan.training_flops:.2e} FLOP training"),
        ("rates", f"{cost.rates.images_per_s:.3g} images/s a sampler, {cost.rates.transitions_per_s:.4g} transitions/s "
                  f"the learner ({cost.rates.source})"),
        ("hours", f"{cost.hours:.3g}: {cost.sampling_hours:.3g} sampling on {sampler_devices(config)}, "
                  f"{cost.training_hours:.3g} training, {stage.schedule}"),
        ("balance", f"{cost.balanced_samplers:.3g} samplers' devices sample for as long as the learner learns"),
        ("cost", f"{cost.gpu_hours:.3g} device-hours ({cost.devices} devices for {cost.hours:.3g} h)"
                 + ("" if cost.money is None else f": {cost.money:,.2f} at the given price")),
        ("Ray", f"{_auto(fleet.max or fleet.count)} samplers of {fleet.num_cpus:g} CPU and "
                f"{_auto(fleet.num_gpus)} GPU, a learner of {config.learner.num_cpus:g} CPU and "
                f"{_auto(config.learner.num_gpus)} GPU"),
    ]  # fmt: skip


def _compiled(config: Config, sampled_rows: int) -> str:
    rows = f"{sampled_rows:,} rows of the network a sampler"
    if config.policy.compile != "auto":
        return "networks of samplers and learner" if config.policy.compile else "nothing"
    if config.sampler.exact:
        return "nothing: sampler.exact=true computes as the learner does"
    if sampled_rows >= COMPILING_PAYS:
        return f"networks of samplers, on a GPU with a compiler: {rows}"
    return f"nothing: {rows} are too few for it to pay"


def _network_rows(rows: NetworkRows) -> str:
    return (
        f"{rows.sampler:,} sampling, {rows.judging:,} judging; learning at most {rows.learner_trained:,} forward and "
        f"backward, {rows.learner_forward:,} forward alone"
    )


def _auto(number: float | None) -> str:
    return "auto" if number is None else f"{number:g}"
