"""The policy: a frozen Stable Diffusion pipeline and its LoRA; π_I is the same module with the LoRA off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from peft import LoraConfig
from torch import Tensor
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTokenizer

from raydense.core.finite import all_finite
from raydense.core.interfaces import NonFiniteError
from raydense.core.seeding import derive_seed
from raydense.core.types import FloatArray, PolicyWeights, tensor_checksum
from raydense.diffusion.compiler import CudaGraphs, compile_blocks
from raydense.diffusion.ddim import DDIMSchedule, gaussian_log_prob, make_schedule, transition
from raydense.diffusion.live_lora import LiveLora, LoraBeside, MergedLora
from raydense.diffusion.stable_diffusion import limit_tokens
from raydense.pipelines.model_folder import ModelFolder
from raydense.pipelines.networks import load_network, load_part

ADAPTER = "default"
UNBOUND = -1  # the version of a LoRA that is partly one and partly another


class Policy:
    """π_θ of METHOD §2: U-Net + LoRA under classifier-free guidance, as a Gaussian transition kernel.

    Args:
        unet, text_encoder, tokenizer: of one diffusers pipeline, in eval mode on one device.
        vae: None where nothing is decoded (the learner).
        schedule: constants of the T-step chain.
        guidance_scale: w; 1 needs no unconditional half.
        lora: how the adapter is added.
        seed: of the adapter's A matrices (B starts at 0, so π_θ = π_I).
        decode_batch: images a decoder call, which bounds its memory; None: all at once.
        merged: whether the LoRA is merged into the weights; such a policy is not trained.
        gradient_checkpointing: whether the backward pass computes the U-Net's activations again.
        channels_last: the U-Net's memory layout, on CUDA that of any compiled one; another one moves the last bits.
        compiled: whether the U-Net's blocks go through torch.compile, which moves them too; the first takes a minute.
        recorded: whether predictions without gradients are CUDA graphs, one a batch size.
    Raises: FileNotFoundError if it is to be compiled where there is no compiler.
    """

    def __init__(
        self,
        unet: Any,
        text_encoder: Any,
        tokenizer: Any,
        vae: Any | None,
        schedule: DDIMSchedule,
        guidance_scale: float,
        lora: LoraConfig,
        seed: int,
        decode_batch: int | None = None,
        merged: bool = False,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
        recorded: bool = False,
    ) -> None:
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, on a GPU too
        self.unet, self.text_encoder, self.tokenizer, self.vae = unet, text_encoder, tokenizer, vae
        self.dtype: torch.dtype = unet.dtype  # diffusers goes through all modules for it, at every call
        self.device = unet.device
        self.schedule = schedule.to(self.device)
        self.guidance_scale = guidance_scale
        self.version = 0
        self._decode_batch = decode_batch
        for module in (unet, text_encoder, vae):
            if module is not None:
                module.requires_grad_(False).eval()
        if channels_last or (compiled and self.device.type == "cuda"):
            unet.to(memory_format=torch.channels_last)  # before the LoRA comes, whose tensors stay as files hold them
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "lora"))
            unet.add_adapter(lora, ADAPTER)
        self.merged = merged
        self._lora: LiveLora = MergedLora(unet, ADAPTER) if merged else LoraBeside(unet, same_code=compiled)
        self._parameters = self._lora.parameters
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if compiled:
            compile_blocks(unet)
        self._graphs = CudaGraphs(self._predict) if recorded else None
        if not self._parameters:
            raise ValueError(f"policy.lora_targets={lora.target_modules} match nothing in the U-Net")
        self._null_embeds = self.encode("").to(self.dtype) if guidance_scale != 1 else None

    # -- LoRA ---------------------------------------------------------------------------------------------

    def parameters(self) -> list[torch.nn.Parameter]:
        """The LoRA tensors, float32, in a fixed order; whoever changes them calls `update`."""
        return list(self._parameters.values())

    def update(self) -> None:
        """What the U-Net computes follows the LoRA tensors."""
        if self._lora.update() and self._graphs:
            self._graphs.forget()

    def weights(self) -> PolicyWeights:
        """A copy of the live LoRA tensors."""
        return PolicyWeights.of(self.version, self._live_tensors())

    def bind(self, weights: PolicyWeights) -> None:
        """Makes `weights` the live LoRA, and proves it: names, shapes, and the checksum of what is then live.

        Raises: ValueError naming what is missing, surplus or misshapen; RuntimeError if the checksum differs.
        """
        missing = self._parameters.keys() - weights.tensors.keys()
        surplus = weights.tensors.keys() - self._parameters.keys()
        misshapen = [
            f"{name} {weights.tensors[name].shape} != {tuple(p.shape)}"
            for name, p in self._parameters.items()
            if name in weights.tensors and weights.tensors[name].shape != tuple(p.shape)
        ]
        if missing or surplus or misshapen:
            raise ValueError(
                f"LoRA weights do not fit: missing {sorted(missing)}, surplus {sorted(surplus)}, misshapen {misshapen}"
            )
        self.version = UNBOUND  # until all of it is
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(np.array(weights.tensors[name])))
        if (live := tensor_checksum(self._live_tensors())) != weights.checksum:
            raise RuntimeError(f"LoRA version {weights.version}: live checksum {live} is not {weights.checksum}")
        self.update()
        self.version = weights.version

    @contextmanager
    def reference(self) -> Iterator[None]:
        """π_I: inside this context the LoRA is off, and what is computed has no gradient to it."""
        with self._unrecorded(), self._lora.off():
            yield

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside this context the policy predicts from a float32 copy of its weights, with the LoRA beside them."""
        unet, dtype, null = self.unet, self.dtype, self._null_embeds
        with self.for_once(), self._lora.beside():
            wide = {name: tensor.float() for name, tensor in unet.state_dict().items()} | {**self._parameters}
            self.unet, self.dtype = lambda *inputs: functional_call(unet, wide, inputs), torch.float32
            self._null_embeds = None if null is None else self.encode("")
            try:
                yield
            finally:
                self.unet, self.dtype, self._null_embeds = unet, dtype, null

    @contextmanager
    def for_once(self) -> Iterator[None]:
        """Inside this context nothing is compiled, recorded or played."""
        with self._unrecorded(), torch.compiler.set_stance("force_eager"):
            yield

    @contextmanager
    def _unrecorded(self) -> Iterator[None]:
        graphs, self._graphs = self._graphs, None
        try:
            yield
        finally:
            self._graphs = graphs

    def _live_tensors(self) -> dict[str, FloatArray]:
        return {n: p.detach().cpu().numpy().copy() for n, p in self._parameters.items()}

    # -- the transition kernel ----------------------------------------------------------------------------

    def transition(self, x_t: Tensor, t: Tensor, prompt_embeds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, σ and x̂0 of π(x_{t+1} | x_t): one U-Net call for both guidance halves.

        Args: x_t [N, C, H, W]; t int64 [N]; prompt_embeds [N, L, D]. Returns: as `ddim.transition`.
        """
        return transition(self.schedule, x_t, self.predict(x_t, t, prompt_embeds), t)

    def log_prob(self, x_t: Tensor, x_next: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """log π(x_{t+1} | x_t), mean over the latent's elements: float32 [N]."""
        mean, sigma, _ = self.transition(x_t, t, prompt_embeds)
        return gaussian_log_prob(x_next, mean, sigma)

    def predict(self, x_t: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The guided network output: float32 [N, C, H, W]."""
        if self._graphs is not None and not torch.is_grad_enabled():
            return self._graphs(x_t, t, prompt_embeds)
        return self._predict(x_t, t, prompt_embeds)

    def _predict(self, x_t: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
        x, timesteps, embeds = x_t.to(self.dtype), self.schedule.timesteps[t], prompt_embeds.to(self.dtype)
        if self._null_embeds is None:
            return self._run_unet(x, timesteps, embeds)
        null = self._null_embeds.expand_as(embeds)
        output = self._run_unet(torch.cat([x, x]), torch.cat([timesteps, timesteps]), torch.cat([null, embeds]))
        unconditional, conditional = output.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _run_unet(self, x: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        output: Tensor = self.unet(x, timesteps, embeds).sample
        return output.float()

    # -- text and pictures --------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompt: str) -> Tensor:
        """One prompt's embedding, float32 [L, D]; one at a time, so that its bits never depend on the batch."""
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        embeds: Tensor = self.text_encoder(tokens.input_ids.to(self.device))[0]
        return embeds[0].float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [N, C, H, W] → images uint8 [N, h, w, 3]. Raises: NonFiniteError: a NaN would become black."""
        if self.vae is None:
            raise RuntimeError("this policy was loaded without its image decoder")
        scaled = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        slices = scaled.split(self._decode_batch or len(scaled))
        pixels = torch.cat([self.vae.decode(part).sample.float() for part in slices])
        finite = all_finite(pixels)
        bytes_ = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        images: NDArray[np.uint8] = bytes_.permute(0, 2, 3, 1).cpu().numpy()
        if not finite:  # read only here, where the device is done
            raise NonFiniteError("non-finite pixels (image decoder); try sampler.dtype=bfloat16 or float32")
        return images


def load_policy(
    model: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    num_steps: int,
    eta: float,
    spacing: str | None = None,
    guidance_scale: float,
    lora: LoraConfig,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    with_decoder: bool,
    decode_batch: int | None = None,
    merged: bool = False,
    gradient_checkpointing: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
    recorded: bool = False,
) -> Policy:
    """Loads a Stable Diffusion pipeline (hub id, directory or pkg://…; safetensors only) as a policy.

    Component by component: a safety checker beside them is never read. The text encoder is float32 whatever `dtype`
    is, so that samplers and learner condition on the same embeddings.
    Args: variant: of the weights, such as fp16; None: plain ones, or the only variant there is.
    Raises: ConfigError where it cannot be had, is damaged or incomplete; ValueError from `make_schedule`.
    """

    def folder(part: str) -> ModelFolder:
        return ModelFolder("policy.model", model, revision, part)

    def network(cls: Any, part: str, dtype: torch.dtype = dtype) -> Any:
        return load_network(cls, folder(part), dtype=dtype, variant=variant).to(device)

    scheduler_config: Mapping[str, Any] = load_part(DDIMScheduler.load_config, folder("scheduler"))  # as it is written
    text_encoder = network(CLIPTextModel, "text_encoder", torch.float32)
    tokenizer = load_part(CLIPTokenizer.from_pretrained, folder("tokenizer"), vocabulary=True)
    limit_tokens(tokenizer, text_encoder.config.max_position_embeddings)
    return Policy(
        unet=network(UNet2DConditionModel, "unet"),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        vae=network(AutoencoderKL, "vae") if with_decoder else None,
        schedule=make_schedule(scheduler_config, num_steps, eta, spacing),
        guidance_scale=guidance_scale,
        lora=lora,
        seed=seed,
        decode_batch=decode_batch,
        merged=merged,
        gradient_checkpointing=gradient_checkpointing,
        channels_last=channels_last,
        compiled=compiled,
        recorded=recorded,
    )
