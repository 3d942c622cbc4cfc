"""What `raydense bench` found, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from raydense.planning.dry_run import size

ROLES = ("sampler", "learner", "scorer")
UNITS = {"sampler": "images", "learner": "transitions", "scorer": "images"}


def bench_table(model: str, found: Mapping[str, Any]) -> Table:
    """A column a role."""
    cut = f"; cut for a CPU: {' '.join(found['cut'])}" if found["cut"] else ""
    table = Table("", *ROLES, title=f"{model}{cut}", title_justify="left")
    for name, cell in (
        ("rate", _rate),
        ("quartiles", _quartiles),
        ("a round", _round),
        ("of it", _phases),
        ("work", _work),
        ("matrix products", _matmul),
        ("share of that", _share),
        ("peak memory", lambda role, f: f"{size(f['peak_bytes'])}, {f['peak_bytes_are']}"),
        ("runs on", lambda role, f: f"{f['device']}, {f['dtype']}, {f['threads']} threads"),
    ):
        table.add_row(name, *(cell(role, found[role]) for role in ROLES))
    return table


def versions_line(found: Mapping[str, Any]) -> str:
    """The machine in a line."""
    versions = ", ".join(f"{name} {v}" for name, v in found["versions"].items() if v is not None)
    return f"{found['device']}, {found['cpus']} CPUs; {versions}"


def _rate(role: str, found: Mapping[str, Any]) -> str:
    return f"{found[f'{UNITS[role]}_per_s']:.4g} {UNITS[role]}/s"


def _quartiles(role: str, found: Mapping[str, Any]) -> str:
    low, high = found["quartiles"]
    return f"{low:.4g} … {high:.4g} of {found['rounds']}"


def _round(role: str, found: Mapping[str, Any]) -> str:
    seconds = f"{found['seconds']['median']:.3g} s: "
    if role == "scorer":
        return seconds + f"{_images(found)} by {found['scorer']}"
    guided = "guided, 2 U-Net rows a latent" if found["rows_a_latent"] == 2 else "without guidance"
    if role == "learner":
        return seconds + f"a step on {found['transitions']} transitions, {guided}, micro-batch {_micro(found)}"
    chain = f"{found['steps_run']} denoising steps"
    if found["steps"] != found["steps_run"]:
        chain += f" (the rate is that of {found['steps']})"
    return seconds + f"a unit of {_images(found)}, {chain}, {guided}"


def _images(found: Mapping[str, Any]) -> str:
    height, width = found["image_size"]
    return f"{found['images']} images of {width} x {height}"


def _micro(found: Mapping[str, Any]) -> str:
    return "whole" if found["micro_batch"] is None else str(found["micro_batch"])


def _phases(role: str, found: Mapping[str, Any]) -> str:
    phases: Mapping[str, float] = found.get("phases", {})
    whole = sum(phases.values())
    return ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in phases.items())


def _work(role: str, found: Mapping[str, Any]) -> str:
    if "flops" not in found:
        return ""
    rows = f"{found['unet_rows']:g} U-Net rows"
    if role == "learner":
        rows += f" with gradient, {found['reference_rows']:g} of π_I"
    return f"{found['flops'] / 1e12:.4g} TFLOP: {rows}{', decoding' if role == 'sampler' else ''}"


def _matmul(role: str, found: Mapping[str, Any]) -> str:
    return f"{found['matmul_flops_per_s'] / 1e12:.4g} TFLOP/s" if "matmul_flops_per_s" in found else ""


def _share(role: str, found: Mapping[str, Any]) -> str:
    if "share" not in found:
        return ""
    denoising = f"; {found['denoise_share']:.1%} while denoising" if "denoise_share" in found else ""
    return f"{found['share']:.1%}{denoising}"
