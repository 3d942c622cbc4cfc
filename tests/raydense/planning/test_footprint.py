"""What a network is planned to take, against what PyTorch's own allocator counts when it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from allocator import allocated, unfolds
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig

from raydense.diffusion.lean import keep_less
from raydense.families.conditioning import each, repeated
from raydense.families.known import family_of
from raydense.pipelines.pipeline_files import PipelineFiles
from raydense.planning.footprint import _Meter, decoder_footprint, denoiser_footprint

UNET: dict[str, Any] = {"sample_size": 16, "block_out_channels": (64, 128, 128, 128), "cross_attention_dim": 64}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
LORA = LoraConfig(r=4, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v", "to_out.0"])
CLOSE = 0.15
ROWS = 4
DTYPES = [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.float32, torch.float16))]
SD3: dict[str, Any] = {
    "sample_size": 16,
    "num_layers": 3,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 96,
    "caption_projection_dim": 128,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
FLUX: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 96,
    "pooled_projection_dim": 64,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}
TRANSFORMERS = {
    "StableDiffusion3Pipeline": (SD3Transformer2DModel, SD3),
    "FluxPipeline": (FluxTransformer2DModel, FLUX),
}


def skip_where_it_unfolds(dtype: torch.dtype) -> None:
    if unfolds(dtype):
        pytest.skip(f"on this CPU a convolution in {dtype} unfolds its pictures: a GPU's memory cannot be counted")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_unfolds_is_told_from_what_does_not(dtype: torch.dtype) -> None:
    pictures, kernels = torch.zeros(4, 32, 16, 16, dtype=dtype), torch.zeros(32, 32, 3, 3, dtype=dtype)
    with torch.no_grad():
        taken = allocated(lambda: torch.nn.functional.conv2d(pictures, kernels, padding=1))
    assert (taken >= 9 * pictures.nbytes) == unfolds(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_unets_row_takes_what_is_planned(dtype: torch.dtype, with_gradient: bool) -> None:
    if not with_gradient:  # with one, what is kept for it is more than a convolution's columns
        skip_where_it_unfolds(dtype)
    unet = UNet2DConditionModel(**UNET).to(dtype).requires_grad_(False).eval()
    files = PipelineFiles("unet", parts={"unet": dict(unet.config), "text_encoder": {"hidden_size": 64}})
    unet.add_adapter(LORA)
    keep_less(unet)
    x, t = torch.zeros(ROWS, 4, 16, 16, dtype=dtype), torch.zeros(ROWS, dtype=torch.long)
    embeds = torch.zeros(ROWS, 77, 64, dtype=dtype)

    def run() -> None:
        with torch.set_grad_enabled(with_gradient):
            output = unet(x, t, embeds).sample
            if with_gradient:
                output.float().sum().backward()

    run()  # whatever is allocated once
    unet.zero_grad(set_to_none=True)
    plan = denoiser_footprint(family_of(files), LORA, dtype=dtype, with_gradient=with_gradient)
    assert plan.peak_bytes * ROWS == pytest.approx(allocated(run), rel=CLOSE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["without a gradient", "with one", "checkpointed"])
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_transformers_row_takes_what_is_planned(kind: str, how: str, dtype: torch.dtype) -> None:
    cls, sizes = TRANSFORMERS[kind]
    files = PipelineFiles("model", kind, {"transformer": sizes})
    family = family_of(files, latent_size=16, text_tokens=32)
    network = cls(**sizes).to(dtype).requires_grad_(False).eval()
    network.add_adapter(LORA)
    network.to(dtype)
    keep_less(network)
    if how == "checkpointed":
        network.enable_gradient_checkpointing()
    x, times, given = family.example_inputs(dtype, "cpu")
    rows = x.repeat(ROWS, 1, 1, 1), times.repeat(ROWS), repeated(each(given, lambda tensor: tensor[0]), ROWS)

    def run() -> None:
        with torch.set_grad_enabled(how != "without a gradient"):
            output = family.call(network, *rows)
            if output.requires_grad:
                output.float().sum().backward()

    run()
    network.zero_grad(set_to_none=True)
    asked = {"with_gradient": how != "without a gradient", "checkpointed": how == "checkpointed"}
    plan = denoiser_footprint(family, LORA, dtype=dtype, **asked)
    assert plan.peak_bytes * ROWS == pytest.approx(allocated(run), rel=CLOSE)


def test_checkpointing_takes_less_memory_and_a_third_more_work() -> None:
    family = family_of(PipelineFiles("model", "FluxPipeline", {"transformer": FLUX}), latent_size=16, text_tokens=32)
    rolled, trained, again = (
        denoiser_footprint(family, LORA, dtype=torch.bfloat16, with_gradient=grad, checkpointed=checkpointed)
        for grad, checkpointed in ((False, False), (True, False), (True, True))
    )
    assert again.peak_bytes < 0.6 * trained.peak_bytes
    assert again.flops == pytest.approx(trained.flops + rolled.flops, rel=0.1)
    assert again.adapted_parameters == (4 * 2 + 3 * 2) * (128**2 + 128)  # of two blocks, and of two single ones


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_picture_takes_what_is_planned(dtype: torch.dtype) -> None:
    skip_where_it_unfolds(dtype)
    vae = AutoencoderKL(**VAE).to(dtype).eval()
    latents = torch.zeros(ROWS, 4, 16, 16, dtype=dtype)
    plan = decoder_footprint(dict(vae.config), latent_size=(16, 16), dtype=dtype)
    with torch.no_grad():
        assert plan.peak_bytes * ROWS == pytest.approx(allocated(lambda: vae.decode(latents)), rel=CLOSE)


def test_the_meter_counts_what_lives_at_once_and_no_weights() -> None:
    with torch.device("meta"):
        network = torch.nn.Linear(1000, 1000)
    with torch.no_grad(), _Meter(network) as meter:
        x = torch.zeros(1, 1000, device="meta")
        for _ in range(50):
            x = network(x)
    assert meter.peak_bytes == 2 * 4000  # a product and its operand
