"""Ours against the published way (`published.py`): `python tests/benchmarks/compare.py [--model NAME] [--json FILE]`.

Both take the same gradient steps on the same draws, and the same rollouts, in this process, alternating; reported are
median and spread of the ratio of times. First it is asserted that loss and gradient agree to 1e-5, and that the
baseline's U-Net calls take what plain diffusers takes, within 5 %. `--what memory` compares peak memory of two
processes, `--what pipeline` a work unit with diffusers' own pipeline. On a GPU:

    python tests/benchmarks/compare.py --model sd15 --device cuda --dtype bfloat16 --what step pipeline
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pipelines import against_pipeline
from published import Published

from actors.sampler import rollout
from learner.batch_source import BatchSource
from learner.gang import Gang
from raydense.bench.architectures import MODELS, bench_policy
from raydense.bench.clock import synchronise
from raydense.checks.noise import drifted
from raydense.config import Config
from raydense.core.types import TrajectoryGroup
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import each, repeated
from raydense.wiring.roles import make_batches, make_learner

EQUAL = 1e-5  # of the loss, and of the gradient's norm
ROUNDED = 0.9  # the same in 16 bits, which leave two thirds of SD1.5's gradient at random weights; see bench/README.md
COMPILED = 2e-5  # the same, where torch.compile rounds elsewhere; before, the code as it is written is held to EQUAL
CALLS = 1.05  # the baseline's U-Net calls against plain diffusers
OVERRIDES = {
    # as many draws a stage as the presets': 8 steps of 48 groups, 2,500 of 4
    "tiny": ["sampler.guidance_scale=7.5", "train.batch_groups=4", "stage.steps=96", "learner.micro_batch=null"],
    "unet-78m": ["learner.threads=2", "stage.steps=10000", "learner.micro_batch=1"],
    "sd15": ["stage.steps=10000", "learner.micro_batch=null"],
}
CPU, CUDA = torch.device("cpu"), torch.device("cuda" if torch.cuda.is_available() else "cpu")
WHAT = ["step", "rollout", "memory", "pipeline"]
ROUNDS = {"tiny": 95, "unet-78m": 9, "sd15": 5}
DRIFT = {"tiny": 2e-3, "unet-78m": 1e-4, "sd15": 1e-4}  # standard deviation of LoRA B: mostly within the clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(OVERRIDES), default="tiny")
    parser.add_argument("--what", choices=WHAT, nargs="*", default=WHAT[:2])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--images", type=int, default=12, help="of --what pipeline")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the preset, for both")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=["ours", "published"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    dtypes = f"learner.dtype={arguments.dtype}", f"sampler.dtype={arguments.dtype}"
    config = MODELS[arguments.model].config(*OVERRIDES[arguments.model], *dtypes, *arguments.set)
    device = torch.device(arguments.device)
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
        result["pipeline"] = ratios(theirs, ours, range(rounds))
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


class Pair:
    """Both implementations with the same LoRA, on the same stored groups."""

    def __init__(self, model: str, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model: Any = partial(bench_policy, model, config, device=device, with_decoder=False)
        self.policy = self.model(dtype=getattr(torch, config.learner.dtype))
        self.policy.bind(drifted(self.policy, DRIFT[model]))
        self.published = Published(self.model(dtype=self.policy.dtype, compiled=False), config)
        self.published.unet.load_state_dict(self.policy.network.state_dict())
        self.shape = self.policy.family.latent_shape
        self.groups = make_groups(self.policy, config, self.shape, count=4 if model == "tiny" else 1)

    def fetch(self, indices: Any) -> list[TrajectoryGroup]:
        """Every group of the stage; their content repeats."""
        return [replace(self.groups[i % len(self.groups)], index=i) for i in indices]

    def compare_steps(self, rounds: int) -> dict[str, float]:
        """Gradient steps at even distances through a stage of the preset's draws.

        What comes between two of them is drawn and not computed: the reference's log-probs that the learner would know
        by then count as known. In the first step, which decides whether both compute the same, nothing is.
        """
        weights, narrow = self.policy.weights(), self.policy.dtype != torch.float32
        with torch.compiler.set_stance("force_eager"):
            self._check_gradient(*self._begin(), within=ROUNDED if narrow else EQUAL)
        if self.config.policy.compile is True:
            self.policy.bind(weights)
            self.published.unet.load_state_dict(self.policy.network.state_dict())
            self._check_gradient(*self._begin(), within=ROUNDED if narrow else COMPILED)
        learner, draws = self._begin()

        def theirs(step: int) -> None:
            batch = draws.take(step)
            self.published.step(batch.parts[0][1], self._prompts(batch))

        def ours(step: int) -> None:
            learner.train(1)

        last = self.config.stage.steps - 1
        steps = np.unique(np.linspace(1, last, min(rounds, last)).astype(int)).tolist()
        return ratios(theirs, ours, steps, prepare=lambda step: _skip_to(learner, draws, step))

    def _begin(self) -> tuple[Any, BatchSource[int]]:
        """A learner at the beginning of a stage, and the draws of its batches."""
        learner: Any = make_learner(self.config, self.policy, self.fetch)
        draws = batch_source(self.config, self.fetch, self.device)
        for source in (learner, draws):
            source.begin_stage(0, list(range(self.config.stage.groups)))
        return learner, draws

    def _check_gradient(self, learner: Any, draws: BatchSource[int], within: float) -> None:
        """The first step of both, from the same weights: same loss, same gradient."""
        batch = draws.take(0)
        (row,) = learner.train(1)
        loss = self.published.step(batch.parts[0][1], self._prompts(batch))
        ours, theirs = (torch.cat([p.grad.flatten() for p in parameters]).double()  # type: ignore[union-attr]
                        for parameters in (self.policy.parameters(), self.published.parameters))  # fmt: skip
        error = float((ours - theirs).norm() / theirs.norm())
        clipped = next(v for n, v in row.values.items() if "clip" in n)
        print(f"loss {loss:.7f}, ours {row.values['loss']:.7f}; gradient differs by {error:.1e}; clipped {clipped:.0%}")
        assert float(theirs.norm()) > 0
        assert abs(loss - row.values["loss"]) <= within * abs(loss)
        assert error <= within

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

        return ratios(theirs, lambda _: rollout(merged, noise, embeds, storage), range(rounds), unit / one)

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

        found = ratios(theirs, diffusers, range(61))["median"]
        assert found <= CALLS, f"the baseline's U-Net calls take {found:.3f} of plain diffusers'"
        return found


def ratios(
    theirs: Callable[[int], Any],
    ours: Callable[[int], Any],
    steps: Sequence[int],
    share: float = 1.0,
    prepare: Callable[[int], Any] = lambda step: None,
) -> dict[str, float]:
    """Times of `theirs` over those of `ours`, a round each, in turns; `share`: how much more ours does in a call."""
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
            seconds[which] += times[which]
        found.append(times[0] * share / times[1])
    low, median, high = np.quantile(found, [0.25, 0.5, 0.75])
    return {
        "median": round(float(median), 3), "quartile_low": round(float(low), 3), "quartile_high": round(float(high), 3),
        "published_s": round(seconds[0] / len(found), 5), "ours_s": round(seconds[1] / len(found), 5),
    }  # fmt: skip


def _skip_to(learner: Any, draws: BatchSource[int], step: int) -> None:
    """As if the learner had taken all steps before this one: their transitions' reference log-probs are known, as 0."""
    for skipped in range(learner._step, step):
        batch = draws.take(skipped)
        learner._references.forget_changed(batch.fingerprints)
        learner._references.remember(batch.plan, np.zeros(batch.plan.trajectories.shape + batch.plan.steps.shape[1:]))
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
        groups.append(
            TrajectoryGroup(
                0,
                index,
                prompt,
                {name: tensor.cpu().numpy() for name, tensor in embeds.items()},
                latents.cpu().numpy(),
                log_probs.cpu().numpy(),
                rewards,
                0,
                "",
            )
        )
    return groups


def batch_source(config: Config, fetch: Any, device: torch.device = CPU) -> BatchSource[int]:
    """The run's own draws, a batch in one part."""
    whole = config.model_copy(update={"learner": config.learner.model_copy(update={"micro_batch": None})})
    return make_batches(whole, fetch, device, Gang(), config.stage.groups)


def peak_bytes_of(which: str, model: str, config: Config) -> int:
    """Peak resident memory of a process that takes two gradient steps one way."""
    policy = bench_policy(model, config, dtype=torch.float32, device=torch.device("cpu"), with_decoder=False)
    shape = (config.sampler.keep, config.steps.count + 1, *policy.family.latent_shape)
    given = {name: tensor.numpy() for name, tensor in policy.encode("a cat").items()}
    group = TrajectoryGroup(0, 0, "a cat", given, np.zeros(shape, np.float16),
                            np.zeros(shape[:2], np.float32), np.arange(shape[0], dtype=np.float32), 0, "")  # fmt: skip

    def fetch(indices: Any) -> list[TrajectoryGroup]:
        return [replace(group, index=i) for i in indices]

    if which == "ours":
        learner: Any = make_learner(config, policy, fetch)
        learner.begin_stage(0, list(range(config.stage.groups)))
        learner.train(2)
    else:
        published = Published(policy, config)
        del policy.network
        draws = batch_source(config, fetch)
        draws.begin_stage(0, list(range(config.stage.groups)))
        for step in range(2):
            published.step(draws.take(step).parts[0][1], ["a cat"] * config.train.batch_groups)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare_memory(argv: list[str]) -> dict[str, float]:
    peaks = {}
    for which in ("published", "ours"):
        done = subprocess.run([sys.executable, *argv, "--memory-of", which], check=True, capture_output=True, text=True)
        peaks[which] = int(done.stdout.split()[-1])
    return {"published_bytes": peaks["published"], "ours_bytes": peaks["ours"],
            "share": round(peaks["ours"] / peaks["published"], 3)}  # fmt: skip


if __name__ == "__main__":
    main()
