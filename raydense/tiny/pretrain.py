"""Makes the tiny models' weights: `python -m raydense.tiny.pretrain --out DIR`, with `--flow` the flow-matching one."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from raydense.tiny.flow_networks import build_flow_pipeline
from raydense.tiny.networks import build_pipeline, build_processor, build_tokenizer, save_bpe_files
from raydense.tiny.oracle import score
from raydense.tiny.scenes import split_captions
from raydense.tiny.train_flow import FlowSettings, draw_images, train_flow
from raydense.tiny.train_scorer import ScorerSettings, build_bank, train_scorer
from raydense.tiny.train_unet import UnetSettings, encode_bank, fully_right_share, train_unet
from raydense.tiny.train_vae import VaeSettings, reconstruction_psnr, train_vae, vae_bank

PHASES = ("vae", "unet", "scorer")
_SHIPPED_VAE = Path(__file__).parent / "weights" / "pipeline" / "vae"


def make_vae(out: Path, seed: int, resume: bool) -> None:
    """Trains the autoencoder into `out`/pipeline/vae."""
    vae = train_vae(vae_bank(VaeSettings()), out / "checkpoints", seed=seed, resume=resume)
    print(f"vae: {reconstruction_psnr(vae):.1f} dB on fresh renderings")
    vae.half().save_pretrained(out / "pipeline" / "vae")


def make_unet(out: Path, seed: int, resume: bool) -> None:
    """Trains the U-Net and text encoder on `out`'s autoencoder and completes `out`/pipeline."""
    vae, tokenizer = finished_vae(out), build_tokenizer()
    bank = encode_bank(vae, tokenizer, UnetSettings().drawings)
    unet, text_encoder = train_unet(bank, out / "checkpoints", seed=seed, resume=resume)
    pipeline = build_pipeline(vae, unet, text_encoder, tokenizer)
    share = fully_right_share(pipeline, list(split_captions()[0]), seed=seed)
    print(f"unet: {share:.3f} of samples fully right (train captions, 10 steps)")
    pipeline.to(torch.float16)
    pipeline.save_pretrained(out / "pipeline")
    prefix_names(out / "pipeline" / "text_encoder" / "model.safetensors")
    save_bpe_files(tokenizer, out / "pipeline" / "tokenizer")


def prefix_names(file: Path) -> None:
    """Gives a text encoder's tensors the names that transformers 4 looks for; transformers 5 reads both."""
    tensors = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def make_scorer(out: Path, seed: int, resume: bool) -> None:
    """Trains the scorer on `out`'s autoencoder into `out`/scorer."""
    bank = build_bank(finished_vae(out), ScorerSettings(), seed)
    scorer = train_scorer(bank, out / "checkpoints", seed=seed, resume=resume)
    scorer.half().save_pretrained(out / "scorer")
    tokenizer = build_tokenizer()
    build_processor(tokenizer).save_pretrained(out / "scorer")
    save_bpe_files(tokenizer, out / "scorer")


def make_flow(out: Path, seed: int, resume: bool) -> None:
    """Trains the flow-matching transformer and its text encoders on the shipped autoencoder into `out`/flow."""
    vae, tokenizer, folder = load_vae(_SHIPPED_VAE), build_tokenizer(), out / "flow"
    bank = encode_bank(vae, tokenizer, FlowSettings().drawings)
    transformer, *text_encoders = train_flow(bank, out / "checkpoints", seed=seed, resume=resume)
    pipeline = build_flow_pipeline(vae, transformer, text_encoders, tokenizer)
    captions = split_captions()[0]
    share = float(score(draw_images(pipeline, captions, seed=seed), captions).mean())
    print(f"flow: {share:.3f} of samples fully right (train captions, 10 steps)")
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    for number in ("", "_2"):
        prefix_names(folder / f"text_encoder{number}" / "model.safetensors")
        save_bpe_files(tokenizer, folder / f"tokenizer{number}")


def finished_vae(out: Path) -> Any:
    """The autoencoder of `out`, float32; raises FileNotFoundError where it is not there yet."""
    folder = out / "pipeline" / "vae"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist; run with --only vae first")
    return load_vae(folder)


def load_vae(folder: Path) -> Any:
    """The autoencoder in `folder`, float32."""
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    # The saved configuration must not name a folder of this machine.
    vae.register_to_config(_name_or_path="raydense-tiny")
    return vae


def main() -> None:
    """Runs the phases asked for, one after another, on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for pipeline/, scorer/, flow/ and checkpoints/")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--only", choices=PHASES, help="run one phase; unet and scorer need a finished vae in DIR")
    chosen.add_argument("--flow", action="store_true", help="make the flow-matching model, on the shipped autoencoder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from DIR/checkpoints where they exist")
    arguments = parser.parse_args()
    # The last bits of a matrix product depend on the number of threads.
    torch.set_num_threads(1)
    makers: dict[str, Callable[[Path, int, bool], None]] = {
        "vae": make_vae,
        "unet": make_unet,
        "scorer": make_scorer,
        "flow": make_flow,
    }
    if arguments.flow:
        phases: tuple[str, ...] = ("flow",)
    else:
        phases = (arguments.only,) if arguments.only else PHASES
    for phase in phases:
        started = time.perf_counter()
        makers[phase](arguments.out, arguments.seed, arguments.resume)
        print(f"{phase}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
