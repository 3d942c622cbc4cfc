"""The rounding error of a log-ratio, by denoising step: `python tests/benchmarks/noise.py [--model NAME]`.

ρ = log π_θ − log π_I of the same transitions in the dtype and in float32, for a LoRA as it is early and late in a run
(standard deviation of its B: 1e-5, 1e-3). Printed are the true ρ and the error, root mean squares over transitions.
"""

from __future__ import annotations

import argparse

import torch

from actors.sampler import rollout
from raydense.bench.architectures import MODELS, bench_policy
from raydense.checks.noise import drifted, log_ratios
from raydense.families.conditioning import repeated

LORAS = {"early": 1e-5, "late": 1e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="tiny")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], nargs="*", default=["bfloat16", "float16"]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trajectories", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="of the chain")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the preset")
    arguments = parser.parse_args()
    settings = [f"steps.count={arguments.steps}", "sampler.guidance_scale=7.5", *arguments.set]
    config = MODELS[arguments.model].config(*settings)
    for name in arguments.dtype:
        dtype, device = getattr(torch, name), torch.device(arguments.device)
        policy = bench_policy(arguments.model, config, dtype=dtype, device=device, with_decoder=False)
        draws = torch.Generator().manual_seed(0)
        shape = (arguments.trajectories, policy.schedule.num_steps + 1, *policy.family.latent_shape)
        embeds = repeated(policy.encode("a red circle"), arguments.trajectories)
        latents, _ = rollout(policy, torch.randn(shape, generator=draws).to(device), embeds, torch.float16)
        start = policy.weights()
        for lora, scale in LORAS.items():
            policy.bind(drifted(policy, scale))
            for t in sorted(
                {0, policy.schedule.num_steps // 2, policy.schedule.num_steps - 2, policy.schedule.num_steps - 1}
            ):
                which = torch.full((arguments.trajectories,), t, device=device)
                own, true = log_ratios(policy, latents[:, t], latents[:, t + 1], which, embeds)
                error = rms(own - true)
                print(f"{arguments.model} {name} {lora} t={t}: rho {rms(true):.1e}, error {error:.1e}", flush=True)
            policy.bind(start)


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


if __name__ == "__main__":
    main()
