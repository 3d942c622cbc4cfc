"""Ours against the published way (`published.py`): `python tests/benchmarks/compare.py [--model NAME] [--json FILE]`.

Both take the same gradient steps on the same draws, and the same rollouts, in this process, alternating, after a round
to warm up; reported are median and spread of the ratio of times. First it is asserted that loss and gradient agree to
1e-5, in float32 if the run is in 16 bits, and that the baseline's U-Net calls take what plain diffusers takes, within
5 %. `--what memory` compares peak memory of two processes, `--what pipeline` a work unit with diffusers' own pipeline.

    python tests/benchmarks/compare.py --device cuda     # SD1.5's architecture in float16: steps, and the pipeline
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peaks import compare_memory, peak_bytes_of
from pipelines import against_pipeline
from published import Published, batch_source

from actors.sampler import rollout
from learner.batch_source import BatchSource
from raydense.bench.architectures import MODELS, bench_policy
from raydense.bench.clock import synchronise
from raydense.checks.noise import drifted
from raydense.config import Config
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import each, repeated
from raydense.wiring.roles import make_learner

EQUAL = {"cpu": 1e-5, "cuda": 1e-3}  # of the loss, and of the gradient's norm; a GPU's sums change with a call's rows
COMPILED = 2e-5  # the same, where torch.compile rounds elsewhere; before, the code as it is written is held to EQUAL
ROUNDED = 1.5  # times as far from the float32 gradient as the published way, ours may be in 16 bits
CALLS = 1.05  # the baseline's U-Net calls against plain diffusers
OVERRIDES = {
    # as many draws a stage as the presets': 8 steps of 48 groups, 2,500 of 4
    "tiny": ["sampler.guidance_scale=7.5", "train.batch_groups=4", "stage.steps=96", "learner.micro_batch=null"],
    "unet-78m": ["learner.threads=2", "stage.steps=10000", "learner.micro_batch=1"],
    "sd15": ["stage.steps=10000", "learner.micro_batch=null"],
}
CPU, CUDA = torch.device("cpu"), torch.device("cuda" if torch.cuda.is_available() else "cpu")
WHAT = {"cpu": ["step", "rollout"], "cuda": ["step", "pipeline"]}
ROUNDS = {"tiny": 95, "unet-78m": 9, "sd15": 5}
DRIFT = {"tiny": 2e-3, "unet-78m": 1e-4, "sd15": 1e-4}  # standard deviation of LoRA B: mostly within the clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(OVERRIDES), help="default: tiny, on a GPU sd15")
    parser.add_argument("--what", choices=["step", "rollout", "memory", "pipeline"], nargs="*", help="default: step "
                        "and rollout, on a GPU step and pipeline")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="float32, on a GPU float16")
    parser.add_argument("--images", type=int, default=12, help="of --what pipeline")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the preset, for both")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=["ours", "published"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    arguments.what = arguments.what or WHAT[device.type]
    arguments.model = arguments.model or {"cpu": "tiny", "cuda": "sd15"}[device.type]
    arguments.dtype = arguments.dtype or {"cpu": "float32", "cuda": "float16"}[device.type]
    dtypes = f"learner.dtype={arguments.dtype}", f"sampler.dtype={arguments.dtype}"
    config = MODELS[arguments.model].config(*OVERRIDES[arguments.model], *dtypes, *arguments.set)
    torch.set_num_threads(config.learner.threads)
    if arguments.memory_of:
        print(peak_bytes_of(arguments.memory_of, arguments.model, config))
        return
    rounds = arguments.rounds or ROUNDS[arguments.model]
    result: dict[str, Any] = {"model": arguments.model, "threads": config.learner.threads, "rounds": rounds}
    result |= {"memory": compare_memory(sys.argv)} if "memory" in arguments.what else {}
    if "step" in arguments.what or "rollout" in arguments.what:
        pair = Pair(arguments.model, config, device)
        if (device.type, arguments.dtype) == ("cpu", "float32"):
            result["unet_call_ratio"] = pair.check_calls()
        if "step" in arguments.what:
            result["step"] = pair.compare_steps(rounds)
        if "rollout" in arguments.what:
            result["rollout"] = pair.compare_rollouts(rounds)
    if "pipeline" in arguments.what:
        ours, theirs = against_pipeline(arguments.model, config, device, arguments.images)
        result["pipeline"] = ratios(theirs, ours, range(rounds + 1))
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


class Pair:
    """Both implementations with the same LoRA, on the same stored groups. Args: like: a pair whose weights it has."""

    def __init__(self, model: str, config: Config, device: torch.device, like: Pair | None = None) -> None:
        self.name, self.config, self.device = model, config, device
        self.model: Any = partial(bench_policy, model, config, device=device, with_decoder=False)
        self.policy = self.model(dtype=getattr(torch, config.learner.dtype))
        if like is not None:
            self.policy.network.load_state_dict(like.policy.network.state_dict())
        self.policy.bind(like.policy.weights() if like else drifted(self.policy, DRIFT[model]))
        other = self.model(dtype=self.policy.dtype, compiled=False)
        other.network.load_state_dict(self.policy.network.state_dict())
        self.published = Published(other, config)
        self.shape = self.policy.family.latent_shape
        count = 4 if model == "tiny" else 1
        self.groups = like.groups if like else make_groups(self.policy, config, self.shape, count)

    def fetch(self, indices: Any) -> list[TrajectoryGroup]:
        """Every group of the stage; their content repeats."""
        return [replace(self.groups[i % len(self.groups)], index=i) for i in indices]

    def compare_steps(self, rounds: int) -> dict[str, float]:
        """Gradient steps at even distances through a stage of the preset's draws.

        What comes between two of them is drawn and not computed: the reference's log-probs that the learner would know
        by then count as known. In the first step, which decides whether both compute the same, nothing is.
        """
        with torch.compiler.set_stance("force_eager"):
            self._check_gradients()
        if self.config.policy.compile is True:
            self._first_step(COMPILED if self.policy.dtype == torch.float32 else math.inf)
        learner, draws = self._begin()

        def theirs(step: int) -> None:
            batch = draws.take(step)
            self.published.step(batch.parts[0][1], self._prompts(batch))

        def ours(step: int) -> None:
            learner.train(1)

        last = self.config.stage.steps - 1
        steps = np.unique(np.linspace(1, last, min(rounds + 1, last)).astype(int)).tolist()
        return ratios(theirs, ours, steps, prepare=lambda step: _skip_to(learner, draws, step))

    def _begin(self) -> tuple[Any, BatchSource[int]]:
        """A learner at the beginning of a stage, and the draws of its batches."""
        learner: Any = make_learner(self.config, self.policy, self.fetch)
        draws = batch_source(self.config, self.fetch, self.device)
        for source in (learner, draws):
            source.begin_stage(0, list(range(self.config.stage.groups)))
        return learner, draws

    def _check_gradients(self) -> None:
        """In float32 both are the same; in 16 bits ours is no further from that than the published way is."""
        if self.policy.dtype == torch.float32:
            self._first_step(EQUAL[self.device.type])
            return
        wide = {"learner.dtype": "float32", "sampler.dtype": "float32"}
        exact = Pair(self.name, _with(self.config, wide), self.device, like=self)
        truth = exact._first_step(EQUAL[self.device.type])[1]
        ours, theirs = (_apart(gradient, truth) for gradient in self._first_step())
        print(f"gradients are off by {ours:.2g}, the published one by {theirs:.2g}")
        assert ours <= ROUNDED * theirs

    def _first_step(self, within: float = math.inf) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of both in the first step, ours and theirs, from the same weights, which it leaves as they were."""
        weights = self.policy.weights()
        learner, draws = self._begin()
        batch = draws.take(0)
        (row,) = learner.train(1)
        loss = self.published.step(batch.parts[0][1], self._prompts(batch))
        ours, theirs = (torch.cat([p.grad.flatten() for p in parameters]).double()  # type: ignore[union-attr]
                        for parameters in (self.policy.parameters(), self.published.parameters))  # fmt: skip
        clipped = next(v for n, v in row.values.items() if "clip" in n)
        print(f"loss {loss:.7f}, ours {row.values['loss']:.7f}; gradients are {_apart(ours, theirs):.1e} apart; "
              f"clipped {clipped:.0%}")  # fmt: skip
        assert float(theirs.norm()) > 0
        assert abs(loss - row.values["loss"]) <= within * abs(loss)
        assert _apart(ours, theirs) <= within
        self.policy.bind(weights)
        self.published.unet.load_state_dict(self.policy.network.state_dict())
        return ours, theirs

    def _prompts(self, batch: Any) -> list[str]:
        return [g.prompt for g in self.fetch(batch.plan.groups.tolist())]

    def compare_rollouts(self, rounds: int) -> dict[str, float]:
        """A trajectory-step: the published batch of one prompt's R against a filled work unit."""
        sampler, steps = self.config.sampler, self.config.steps.count
        storage = getattr(torch, sampler.storage_dtype)
        draws = torch.Generator().manual_seed(0)
        one, unit = sampler.trajectories, sampler.trajectories * sampler.prompts_at_once
        noise = torch.randn((unit, steps + 1, *self.shape), generator=draws).to(self.device)
        merged = self.model(dtype=getattr(torch, sampler.dtype), merged=True)
        merged.bind(self.policy.weights())
        embeds = repeated(self.policy.encode("a red circle"), unit)
        self.published.unet.load_state_dict(self.policy.network.state_dict())
        latents, log_probs = rollout(merged, noise[:one], each(embeds, lambda tensor: tensor[:one]), storage)
        again, log_probs_again = self.published.rollout(noise[:one], "a red circle", storage)
        torch.testing.assert_close(again.float(), latents.float(), rtol=0, atol=0.02)
        torch.testing.assert_close(log_probs_again[:, 0], log_probs[:, 0], rtol=1e-4, atol=1e-4)

        def theirs(_: int) -> None:
            self.published.rollout(noise[:one], "a red circle", storage)

        return ratios(theirs, lambda _: rollout(merged, noise, embeds, storage), range(rounds + 1), unit / one)

    def check_calls(self) -> float:
        """The baseline's U-Net call against that of a diffusers pipeline with the LoRA loaded."""
        plain = copy.deepcopy(self.policy.network).to(memory_format=torch.contiguous_format)
        draws = torch.Generator().manual_seed(0)
        x = torch.randn((2, *self.shape), generator=draws)
        embeds, t = self.policy.encode("a red circle")["prompt_embeds"].expand(2, -1, -1), torch.tensor(501)

        def diffusers(_: int) -> None:
            with torch.no_grad():
                plain(x, t, encoder_hidden_states=embeds, return_dict=False)

        def theirs(_: int) -> None:
            with torch.no_grad():
                self.published.call(self.published.unet, x, t, embeds)

        found = ratios(theirs, diffusers, range(62))["median"]
        assert found <= CALLS, f"the baseline's U-Net calls take {found:.3f} of plain diffusers'"
        return found


def ratios(
    theirs: Callable[[int], Any],
    ours: Callable[[int], Any],
    steps: Sequence[int],
    share: float = 1.0,
    prepare: Callable[[int], Any] = lambda step: None,
) -> dict[str, float]:
    """Times of `theirs` over those of `ours`, a round each, in turns; `share`: how much more ours does in a call.

    The first round warms up.
    """
    found, seconds = [], {0: 0.0, 1: 0.0}
    for turn, step in enumerate(steps):
        prepare(step)
        times = {0: 0.0, 1: 0.0}
        for which in (0, 1) if turn % 2 else (1, 0):
            synchronise(CUDA)
            started = time.perf_counter()
            (theirs, ours)[which](step)
            synchronise(CUDA)
            times[which] = time.perf_counter() - started
        if turn > 0:
            found.append(times[0] * share / times[1])
            seconds = {which: seconds[which] + times[which] for which in times}
    low, median, high = np.quantile(found, [0.25, 0.5, 0.75])
    return {
        "median": round(float(median), 3), "quartile_low": round(float(low), 3), "quartile_high": round(float(high), 3),
        "published_s": round(seconds[0] / len(found), 5), "ours_s": round(seconds[1] / len(found), 5),
    }  # fmt: skip


def _apart(gradient: torch.Tensor, other: torch.Tensor) -> float:
    return float((gradient - other).norm() / other.norm())


def _with(config: Config, changes: dict[str, Any]) -> Config:
    for name, value in changes.items():
        section, field = name.split(".")
        config = config.model_copy(update={section: getattr(config, section).model_copy(update={field: value})})
    return config


def _skip_to(learner: Any, draws: BatchSource[int], step: int) -> None:
    """As if the learner had taken all steps before this one: their transitions' reference log-probs are known, as 0."""
    references = learner._objective._references
    for skipped in range(learner._step, step):
        batch = draws.take(skipped)
        references.forget_changed(batch.fingerprints)
        references.remember(batch.plan, np.zeros(batch.plan.trajectories.shape + batch.plan.steps.shape[1:]))
    learner._step = step


def make_groups(policy: Policy, config: Config, shape: tuple[int, ...], count: int) -> list[TrajectoryGroup]:
    """Groups that the policy rolled out, as it is now."""
    draws, kept = torch.Generator().manual_seed(0), config.sampler.keep
    groups = []
    for index in range(count):
        prompt = f"a {['red', 'blue', 'green', 'yellow'][index]} circle"
        embeds = policy.encode(prompt)
        noise = torch.randn((kept, config.steps.count + 1, *shape), generator=draws).to(policy.device)
        latents, log_probs = rollout(policy, noise, repeated(embeds, kept), torch.float16)
        rewards = torch.randn(kept, generator=draws).numpy()
        given = {name: tensor.cpu().numpy() for name, tensor in embeds.items()}
        states, densities = latents.cpu().numpy(), log_probs.cpu().numpy()
        groups.append(TrajectoryGroup(0, index, prompt, given, states, densities, rewards, 0, ""))
    return groups


if __name__ == "__main__":
    main()
