"""`raydense sample`: pictures of a prompt from several models with the same noise, and the chains that led to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.judges import Judges
from actors.sampler import denoise
from raydense.config import Config, ConfigError
from raydense.core.interfaces import ScoreError, SharedStateChanged
from raydense.core.seeding import generator
from raydense.core.threads import cpu_threads
from raydense.core.types import FloatArray, Scales
from raydense.diffusion.kernel import Schedule
from raydense.diffusion.policy import Policy
from raydense.evaluation.candidates import Model, Source
from raydense.evaluation.evaluate import run_scales
from raydense.families.conditioning import Conditioning, each, repeated
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.records.grids import fitting, save_grid
from raydense.records.tables import write_json
from raydense.sections.rewards import ScorerConfig
from raydense.training.normalising import is_zscored
from raydense.wiring.devices import resolve_device
from raydense.wiring.policies import build_sampling_policy
from raydense.wiring.scorers import build_scorer

CHAIN_SHOWN = 12  # steps of a chain in a strip, at most
TOLERANCE = 0.1
RULE = (
    f"settled: from this step on, x̂0's score stays within {TOLERANCE:.0%} of the chain's range of scores from that of "
    "the finished picture"
)

Pictures = NDArray[np.uint8]
UNJUDGED = np.zeros(0, np.float32)


class Judge:
    """Scores pictures of one prompt, uint8 [N, h, w, 3] → float32 [N]; none once it failed, and it is asked no more.

    What was drawn is worth more than its scores: a failure is kept in `failure`, to be told when all is written.
    """

    def __init__(self, scorer: ScorerConfig, scales: Scales) -> None:
        self._name, self._scales = scorer.name, scales
        self._judges = Judges(build_scorer(scorer), ())
        self.failure: ScoreError | SharedStateChanged | None = None

    def __call__(self, pictures: Pictures, prompt: str) -> FloatArray:
        prompts = [prompt] * len(pictures)
        try:
            return self._judges.judge(pictures, prompts, self._judges.damage, self._scales).scores[self._name]
        except (ScoreError, SharedStateChanged) as failure:
            self.failure = failure
            return UNJUDGED


@dataclass(frozen=True)
class Drawing:
    """One prompt by one model: pictures uint8 [m, h, w, 3], and of the first the chain uint8 [S, h, w, 3].

    scores: float32 [T + 1], of x̂0 at each of its steps and of the finished picture; empty where nothing judged them.
    """

    prompt: str
    model: str
    pictures: Pictures
    chain: Pictures
    scores: FloatArray


def shown_steps(config: Config) -> list[int]:
    """Indices of the steps in a strip, the first and the last among them. Args: config: resolved."""
    steps = config.evaluate.steps or config.steps.count
    count = min(CHAIN_SHOWN, steps)
    return [round(i * (steps - 1) / max(1, count - 1)) for i in range(count)]


def draw(
    config: Config,
    pipeline: PipelineFiles,
    models: Sequence[Model],
    prompts: Sequence[str],
    images: int,
    *,
    chains: bool,
    judge: Judge | None = None,
    progress: Callable[[int, int], None],
) -> list[Drawing]:
    """Draws in this process; picture i has the noise of the i-th picture of an evaluation with this seed.

    Args:
        config: its policy is the models' own; its seed decides the noise.
        pipeline: that config names, as it was read.
        images: of each prompt and model.
        chains: whether to decode x̂0 at the steps of `shown_steps`, of the first picture.
        judge: of x̂0 at every step of these chains.
        progress: hears how many drawings of how many are done.
    """
    drawings = []
    device = resolve_device(config.sampler.device, "sampler.device")
    with cpu_threads(config.sampler.threads):
        policy = build_sampling_policy(config, device, pipeline)
        noise = _noise(config, policy, images).to(device)
        for model in models:
            policy.bind(model.weights)
            for prompt in prompts:
                drawings.append(Drawing(prompt, model.name, *_drawn(config, policy, noise, prompt, chains, judge)))
                progress(len(drawings), len(models) * len(prompts))
    return [replace(drawing, scores=UNJUDGED) for drawing in drawings] if judge and judge.failure else drawings


def _noise(config: Config, policy: Policy, images: int) -> Tensor:
    """As the sampler draws it for fixed seeds: float32 [m, T+1, C, H, W]."""
    shape = (policy.evaluated.num_steps + 1, *policy.family.latent_shape)
    return torch.stack([torch.randn(shape, generator=generator(config.seed, "render", i)) for i in range(images)])


def judge_scales(scorer: ScorerConfig, sources: Sequence[Source]) -> Scales:
    """What a mixture of z-scores divides by, as a run of `sources` was judged. Raises: ConfigError without one."""
    known = run_scales(scorer, sources)
    if is_zscored(scorer) and known is None:
        raise ConfigError(
            f"{scorer.name} is of z-scores, which are a run's own; draw a run that was trained with it, or give "
            "another judge by --scorer"
        )
    return known[0].of(0) if known else ()


@torch.no_grad()
def _drawn(
    config: Config, policy: Policy, noise: Tensor, prompt: str, chains: bool, judge: Judge | None
) -> tuple[Pictures, Pictures, FloatArray]:
    """Pictures, chain and scores of a `Drawing`."""
    conditioning = repeated(policy.encode(prompt), len(noise))
    storage, schedule = getattr(torch, config.sampler.storage_dtype), policy.evaluated
    latents, _, pictures = denoise(policy, noise, conditioning, storage, schedule)
    if not chains:
        return pictures, pictures[:0], UNJUDGED
    shown = shown_steps(config)
    if judge is None or judge.failure:
        return pictures, _predictions(policy, latents, conditioning, schedule, shown), UNJUDGED
    chain = _predictions(policy, latents, conditioning, schedule, range(schedule.num_steps))
    return pictures, chain[shown], judge(np.concatenate([chain, pictures[:1]]), prompt)


def _predictions(
    policy: Policy, latents: Tensor, conditioning: Conditioning, schedule: Schedule, steps: Sequence[int]
) -> Pictures:
    """x̂0 of the first picture at some steps, decoded; as many at once as pictures were drawn."""
    parts = []
    for start in range(0, len(steps), len(latents)):
        t = torch.tensor(steps[start : start + len(latents)], device=latents.device)
        given = each(conditioning, itemgetter(slice(len(t))))  # all are of one prompt
        _, _, x0 = policy.transition(latents[0, t], t, given, schedule)
        parts.append(policy.decode(x0))
    return np.concatenate(parts)


def distances(drawing: Drawing) -> list[float]:
    """Mean distance of each picture of the chain from the finished one, of the whole range: 0 to 1."""
    final = drawing.pictures[0].astype(np.float64)
    return [float(np.abs(picture - final).mean() / 255) for picture in drawing.chain]


def save_pictures(path: Path, drawings: Sequence[Drawing]) -> Path:
    """A row a prompt, a block of columns a model. Returns: where the file is."""
    prompts, models = (list(dict.fromkeys(getattr(d, name) for d in drawings)) for name in ("prompt", "model"))
    cells = {(d.prompt, d.model): d.pictures for d in drawings}
    rows = [np.concatenate([cells[prompt, model] for model in models]) for prompt in prompts]
    return _save(path, np.stack(rows), prompts, models)


def save_chains(path: Path, config: Config, drawings: Sequence[Drawing]) -> Path:
    """A row a prompt and model: x̂0 along the chain, then the finished picture. Returns: where the file is.

    Framed: the first picture shown in which the judge's score is settled.
    """
    shown = shown_steps(config)
    rows = np.stack([np.concatenate([d.chain, d.pictures[:1]]) for d in drawings])
    titles = [f"t = {step}" for step in shown]
    framed = [int(np.searchsorted(shown, settled_at(d.scores))) for d in drawings if len(d.scores)]
    labels = [f"{d.model}: {d.prompt}" + _settled(d) for d in drawings]
    return _save(path, rows, labels, [*titles, "finished"], framed)


def _settled(drawing: Drawing) -> str:
    return f" (settled at t = {settled_at(drawing.scores)})" if len(drawing.scores) else ""


def write_chains(path: Path, config: Config, judge: str, drawings: Sequence[Drawing]) -> None:
    """The numbers behind `save_chains`, as JSON. Args: judge: its name."""
    rows = [
        {
            "model": d.model,
            "prompt": d.prompt,
            "scores": [float(score) for score in d.scores[:-1]],
            "finished": float(d.scores[-1]),
            "settled_at": settled_at(d.scores),
            "distances": distances(d),
        }
        for d in drawings
    ]
    write_json(path, {"judge": judge, "rule": RULE, "shown_steps": shown_steps(config), "chains": rows})


def _save(
    path: Path, images: Pictures, prompts: Sequence[str], titles: Sequence[str], framed: Sequence[int] = ()
) -> Path:
    height, width, _ = save_grid(path, images, prompts, titles, framed).shape
    return fitting(path, width, height)


def settled_at(scores: FloatArray) -> int:
    """The first step from which on the score of x̂0 stays near that of the finished picture, by `RULE`.

    Args: scores: [T + 1], of x̂0 at each step, and of the finished picture.
    Returns: T where no x̂0 stays near it.
    """
    values = scores.astype(np.float64)
    away = np.flatnonzero(np.abs(values - values[-1]) > TOLERANCE * np.ptp(values))
    return int(away[-1]) + 1 if len(away) else 0
