"""Share of a LoRA's update that is left when it is merged in 16 bits: `python tests/benchmarks/merging.py`.

Over the layers that a preset adapts, of their own shapes, as `MergedLora` counts it: the update that was made,
projected on the one that was wanted. The network's weights are random, not the real ones; their standard deviation
decides how small a last place is.
"""

from __future__ import annotations

import argparse

import torch

from raydense.config import load_config
from raydense.planning.footprint import denoiser_on_meta, lora_shapes
from raydense.wiring.policies import lora_config, read_family, resolved

SIZES = [1e-5, 1e-4, 1e-3, 3e-3, 1e-2]  # standard deviations of B


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="multi-prompt")
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 32])
    parser.add_argument("--weights", type=float, default=0.04, help="standard deviation of the network's weights")
    arguments = parser.parse_args()
    for name in ("bfloat16", "float16"):
        for rank in arguments.ranks:
            shares = " | ".join(f"{share:.1%}" for share in left(arguments.preset, rank, name, arguments.weights))
            print(f"| {name}, rank {rank} | {shares} |", flush=True)


def left(preset: str, rank: int, name: str, deviation: float) -> list[float]:
    """For each of `SIZES`."""
    config = load_config(None, preset, [f"policy.lora_rank={rank}"])
    family = read_family(config, fetch=False)
    lora, network = lora_config(resolved(config, family)), denoiser_on_meta(family)
    adapted = [layer.removesuffix(".lora_A.default.weight") for layer in lora_shapes(family, lora) if "lora_A" in layer]
    dtype: torch.dtype = getattr(torch, name)
    draws, kept, wanted = torch.Generator().manual_seed(0), torch.zeros(len(SIZES)), torch.zeros(len(SIZES))
    for layer in adapted:
        rows, columns = network.get_submodule(layer).weight.shape
        weight = (deviation * torch.randn(rows, columns, generator=draws)).to(dtype).float()
        down = torch.randn(rank, columns, generator=draws) / rank
        up = torch.randn(rows, rank, generator=draws)
        whole = lora.lora_alpha / rank * up @ down
        for index, size in enumerate(SIZES):
            update = size * whole
            merged = (weight + update).to(dtype).float()
            kept[index] += ((merged - weight) * update).sum()
            wanted[index] += update.square().sum()
    return (kept / wanted).tolist()


if __name__ == "__main__":
    main()
