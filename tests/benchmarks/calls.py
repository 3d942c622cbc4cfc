"""A sampler's guided U-Net call against the body of diffusers' loop: `python tests/benchmarks/calls.py [--model NAME]`.

Both run the same weights, with a LoRA merged into them: ours as a sampler has it (`Policy.predict`), diffusers' as its
pipelines do (concatenate, network, guidance). Alternating in one process, on one thread; median and quartiles of the
ratio of times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from raydense.bench.architectures import MODELS, bench_policy
from raydense.bench.clock import synchronise
from raydense.checks.noise import drifted
from raydense.diffusion.policy import Policy
from raydense.families.conditioning import repeated

Call = Callable[[], torch.Tensor]
LATE = 1e-2  # standard deviation of B: all of the update survives 16 bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="tiny")
    parser.add_argument("--rows", type=int, nargs="*", default=[80, 4], help="of the network; half of them guided")
    parser.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = MODELS[arguments.model].config("sampler.guidance_scale=7.5")
    device = torch.device(arguments.device)
    for name in arguments.dtype:
        dtype = getattr(torch, name)
        policy = bench_policy(arguments.model, config, dtype=dtype, device=device, with_decoder=False, merged=True)
        policy.bind(drifted(policy, LATE))
        plain = UNet2DConditionModel.from_config(policy.network.config).to(device, dtype).eval()
        plain.load_state_dict(policy.network.state_dict())
        for rows in arguments.rows:
            ours, theirs = calls(policy, plain, (rows // 2, *policy.family.latent_shape))
            with torch.no_grad():
                torch.testing.assert_close(ours().to(dtype), theirs(), rtol=2e-2, atol=2e-1)
                low, median, high = ratios(ours, theirs, arguments.rounds, device)
            print(f"{arguments.model} {name} {rows} rows: {median:.3f} [{low:.3f}, {high:.3f}]", flush=True)


def calls(policy: Policy, plain: torch.nn.Module, shape: tuple[int, ...]) -> tuple[Call, Call]:
    """Ours and diffusers', on the same inputs."""
    x = torch.randn(shape, device=policy.device, dtype=policy.dtype)
    t = torch.zeros(len(x), dtype=torch.long, device=policy.device)
    given = {name: tensor.to(policy.dtype) for name, tensor in repeated(policy.encode("a red circle"), len(x)).items()}
    embeds = given["prompt_embeds"]
    null = policy.encode("")["prompt_embeds"].to(policy.dtype).expand_as(embeds)
    timesteps = policy.schedule.timesteps[t]

    def theirs() -> torch.Tensor:
        output = plain(torch.cat([x, x]), torch.cat([timesteps, timesteps]), torch.cat([null, embeds])).sample
        unconditional, conditional = output.chunk(2)
        guided: torch.Tensor = unconditional + policy.family.guidance_scale * (conditional - unconditional)
        return guided

    return lambda: policy.predict(x, t, given), theirs


def ratios(ours: Call, theirs: Call, rounds: int, device: torch.device) -> tuple[float, float, float]:
    """Quartiles of our time over theirs, pair by pair; who begins alternates."""
    found = []
    for index in range(rounds + 1):
        seconds = {}
        for call in (ours, theirs) if index % 2 else (theirs, ours):
            synchronise(device)
            started = time.perf_counter()
            call()
            synchronise(device)
            seconds[call] = time.perf_counter() - started
        found.append(seconds[ours] / seconds[theirs])
    low, median, high = np.quantile(found[1:], [0.25, 0.5, 0.75])
    return float(low), float(median), float(high)


if __name__ == "__main__":
    main()
