"""`raydense export`: a run's LoRA as others take it: the file, a model card, and an example that runs as it stands."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from raydense.config import Config, ConfigError
from raydense.diffusion.lora import FILE_NAME, PREFERENCES, read_origin
from raydense.evaluation.example import example_code
from raydense.files.locations import PACKAGE_SCHEME
from raydense.records.run_dir import RunDirectory
from raydense.records.scores import Scores, read_scores
from raydense.records.tables import Sheet, shown
from raydense.sections.rewards import SingleScorerConfig
from raydense.wiring.chains import judged_by, trained_by

DENSE = (
    "[A Dense Reward View on Aligning Text-to-Image Diffusion with Preference](https://arxiv.org/abs/2402.08265) "
    "(Yang, Chen, Zhou; ICML 2024)"
)
PAPERS = {  # of objectives
    "dense_preference": DENSE,
    "trajectory_preference": f"{DENSE}, without its discount",
    "policy_gradient": "[DDPO](https://arxiv.org/abs/2305.13301) with advantages within groups, as "
    "[Flow-GRPO](https://arxiv.org/abs/2505.05470)",
    "diffusion_dpo": "[Diffusion-DPO](https://arxiv.org/abs/2311.12908) (Wallace et al.; CVPR 2024)",
}
PICTURE = "before-after.png"
CARD = """\
---
{front}
---

# {name}

A LoRA that aligns `{base}` with a preference model, trained with raydense by the method of
{paper}.

| | |
|---|---|
| base model | `{base}` |
| LoRA | rank {rank}, alpha {alpha:g}, on {targets} |
| reward | {reward} |
| prompts | `{train}`{unseen} |
| sampling | {stages} stages of {groups:,} trajectory groups, R = {rolled}, K = {kept} |
| training | {steps:,} gradient steps a stage; seed {seed} |
| chain | {chain} {dynamics} steps, eta {eta:g}, guidance {guidance:g}, discount γ = {gamma:g}{judged} |
| loss | {loss}, learning rate {lr:g} |
| weights | {weights} |
| state | {state} |

## Use

Run this in the directory of the file:

```python
{example}```

## Results

{results}
{picture}
## Licence

{licence}
"""


def export(run: Path, to: Path) -> None:
    """Writes LoRA, README.md (the model card), example.py, config.yaml and the before-after picture into `to`.

    Raises: ConfigError if `run` has no LoRA of its own, or `to` holds something.
    """
    directory = RunDirectory(run)
    config = directory.read_config()
    lora = directory.lora / FILE_NAME
    if not lora.is_file():
        raise ConfigError(f"{run} has no LoRA yet; a run writes one with its first checkpoint")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to={to} is not empty and is never overwritten; give a new directory")
    scores, learned_from = read_scores(run), read_origin(lora)["reward"]
    prompt = scores.prompts["train"][0] if scores else "a photograph"
    example = example_code(config, prompt, directory.read_scheduler())
    to.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(lora, to / FILE_NAME)
    (to / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    picture = directory.images / PICTURE
    if picture.is_file():
        shutil.copyfile(picture, to / PICTURE)
    (to / "example.py").write_text(example, encoding="utf-8")
    card = model_card(config, scores, example, has_picture=picture.is_file(), learned_from=learned_from)
    (to / "README.md").write_text(card, encoding="utf-8")


def model_card(
    config: Config,
    scores: Scores | None,
    example: str,
    *,
    has_picture: bool,
    learned_from: Mapping[str, Any] | None = None,
) -> str:
    """The card as Markdown with the front matter that model hubs read.

    Args: learned_from: as the LoRA file names its reward; None: the run's scorer.
    """
    orders = _orders(learned_from or {})
    policy, stage, sampler, steps = config.policy, config.stage, config.sampler, config.steps
    return CARD.format(
        front=_front_matter(policy.model),
        name=config.name,
        paper=PAPERS[config.train.objective],
        base=policy.model if policy.revision is None else f"{policy.model}@{policy.revision}",
        rank=policy.lora_rank,
        alpha=policy.alpha,
        targets=", ".join(policy.lora_targets or ()),
        reward=orders or _reward(config),
        train=config.prompts.train,
        unseen=f"; held out: `{config.prompts.unseen}`" if config.prompts.unseen else "",
        stages=stage.count,
        groups=stage.groups,
        rolled=sampler.trajectories,
        kept=sampler.keep,
        steps=stage.steps,
        seed=config.seed,
        chain=steps.count,
        dynamics="DDIM" if steps.dynamics in (None, "ddim") else steps.dynamics,
        eta=steps.eta,
        guidance=sampler.guidance_scale,
        gamma=steps.gamma,
        judged="" if judged_by(config) == trained_by(config) else f"; judged by {judged_by(config)}",
        loss=config.train.shown_loss,
        lr=config.train.lr,
        weights=config.train.shown_weights,
        state="finished" if scores else "unfinished: the LoRA of its latest checkpoint",
        example=example,
        results=results_sheet(config, scores).markdown() if scores else "The run has not judged its result.\n",
        picture=f"\n![The same prompts and seeds before and after]({PICTURE})\n" if has_picture else "",
        licence=_licence(config, orders or config.reward.scorer.name),
    )


def _front_matter(model: str) -> str:
    is_hub_id = not model.startswith((PACKAGE_SCHEME, "/", ".", "~"))
    front: str = ModelCardData(
        base_model=model if is_hub_id else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        license="other",
        license_name="see-below",
        tags=["lora", "text-to-image", "preference-alignment", "raydense"],
    ).to_yaml()
    return front


def results_sheet(config: Config, scores: Scores) -> Sheet:
    """Mean scores before and after with the paired gain, each with its interval clustered by prompt."""
    rows = []
    for prompts, judges in scores.judged.items():
        for judge, paired in judges.items():
            before, after, gain = paired.intervals()
            trained = " (trained on)" if judge == config.reward.scorer.name else ""
            rows.append((f"{judge}{trained}", prompts, shown(before), shown(after), shown(gain, "+")))
    title = "Mean score, same prompts and seeds [95 % interval, clustered by prompt]"
    return Sheet(title, ("judge", "prompts", "before", "after", "gain"), tuple(rows), names=2)


def _orders(learned_from: Mapping[str, Any]) -> str:
    if learned_from.get("kind") != PREFERENCES:
        return ""
    return f"orders that people gave: `{learned_from['file']}` (sha256 `{learned_from['sha256']}`)"


def _reward(config: Config) -> str:
    judge = config.reward.scorer
    if judge.kind == "mixture":
        parts = (f"{part.weight:g} x {_judge(part.scorer)}" for part in judge.components)
        return f"{judge.name}: " + " + ".join(parts)
    return _judge(judge)


def _judge(judge: SingleScorerConfig) -> str:
    told = judge.model_dump(mode="json", include={"version", "model", "revision", "head", "target", "url"})
    details = "".join(f", {key} `{value}`" for key, value in told.items() if value is not None)
    return f"{judge.name} ({judge.kind}{details})"


def _licence(config: Config, judge: str) -> str:
    if config.policy.model.startswith(f"{PACKAGE_SCHEME}raydense."):
        return "The base model and its judge are raydense's own, under the Apache License 2.0; so is this LoRA."
    return (
        f"This LoRA is a derivative of `{config.policy.model}`: that model's terms apply to it and its pictures. "
        f"It was trained against {judge} and the prompts named above, whose terms may add others. "
        "raydense itself is under the Apache License 2.0 and adds none. Whoever publishes this states the licence in "
        "the front matter."
    )
