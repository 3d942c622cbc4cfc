"""The policy: a frozen diffusion pipeline and its LoRA; π_I is the same module with the LoRA off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from torch import Tensor

from raydense.core.finite import all_finite
from raydense.core.interfaces import NonFiniteError
from raydense.core.seeding import derive_seed
from raydense.core.types import FloatArray, PolicyWeights, tensor_checksum
from raydense.diffusion.compiler import CudaGraphs, compile_blocks
from raydense.diffusion.kernel import Schedule, gaussian_log_prob, transition
from raydense.diffusion.live_lora import LiveLora, LoraBeside, MergedLora
from raydense.diffusion.noising import NoiseLevels
from raydense.diffusion.transfers import to_cpu
from raydense.diffusion.widening import widened
from raydense.families.conditioning import Conditioning, each
from raydense.families.family import Family, Texts
from raydense.files.locations import short

ADAPTER = "default"
UNBOUND = -1  # the version of a LoRA that is partly one and partly another


class Policy:
    """π_θ of METHOD §2: a network + LoRA under classifier-free guidance, as a Gaussian transition kernel.

    Args:
        family: what a call of the network is.
        network: that is trained; of one diffusers pipeline with all that follows, in eval mode on one device.
        texts: its text encoders.
        vae: None where nothing is decoded (the learner).
        schedule: constants of the T-step chain.
        lora: how the adapter is added.
        seed: of the adapter's A matrices (B starts at 0, so π_θ = π_I).
        evaluated: constants of the chain by which pictures are drawn to judge; None: `schedule`.
        decode_batch: images a decoder call, which bounds its memory; None: all at once.
        merged: whether the LoRA is merged into the weights; such a policy is not trained.
        gradient_checkpointing: whether the backward pass computes the network's activations again.
        channels_last: a U-Net's memory layout, on CUDA that of any compiled one; another one moves the last bits.
        compiled: whether the network's blocks go through torch.compile, which moves them too; the first takes a minute.
        recorded: whether predictions without gradients are CUDA graphs, one a batch size.
    Raises: FileNotFoundError if it is to be compiled where there is no compiler.
    """

    def __init__(
        self,
        family: Family,
        network: Any,
        texts: Texts,
        vae: Any | None,
        schedule: Schedule,
        lora: LoraConfig,
        seed: int,
        *,
        evaluated: Schedule | None = None,
        decode_batch: int | None = None,
        merged: bool = False,
        gradient_checkpointing: bool = False,
        channels_last: bool = False,
        compiled: bool = False,
        recorded: bool = False,
    ) -> None:
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, on a GPU too
        self.family, self.network, self.texts, self.vae = family, network, texts, vae
        self.dtype: torch.dtype = network.dtype  # diffusers goes through all modules for it, at every call
        self.device = network.device
        self.schedule = schedule.to(self.device)
        self.evaluated = self.schedule if evaluated is None else evaluated.to(self.device)
        self.version = 0
        self.rows = {"forward": 0, "trained": 0}  # of network calls so far: without a backward pass, and with one
        self._is_reference = False
        self._decode_batch = decode_batch
        for module in (network, vae, *(text.network for text in texts.values())):
            if module is not None:
                module.requires_grad_(False).eval()
        if channels_last or (compiled and self.device.type == "cuda"):
            network.to(memory_format=torch.channels_last)  # before the LoRA comes: its tensors stay as in files
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "lora"))
            network.add_adapter(lora, ADAPTER)
        self.merged = merged
        self._lora: LiveLora = MergedLora(network, ADAPTER) if merged else LoraBeside(network, same_code=compiled)
        self._parameters = self._lora.parameters
        if gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if compiled:
            compile_blocks(network)
        self._graphs = CudaGraphs(self._predict) if recorded else None
        if not self._parameters:
            raise ValueError(f"policy.lora_targets={lora.target_modules} match nothing in the network")
        self._names = tuple(sorted(family.conditioning_shapes))
        self._empty = family.unconditional(texts) if family.guided else None
        self._null = self._cast_empty()

    @property
    def about(self) -> str:
        """Base model, device and dtype."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{short(self.family.files.model)}, {self.device}, {dtype}"

    # -- LoRA ---------------------------------------------------------------------------------------------

    def parameters(self) -> list[torch.nn.Parameter]:
        """The LoRA tensors, float32, in a fixed order; whoever changes them calls `update`."""
        return list(self.named_parameters().values())

    def named_parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """Those of `parameters`, as `weights` names them."""
        return self._parameters

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
        self._is_reference = True
        try:
            with self._unrecorded(), self._lora.off():
                yield
        finally:
            self._is_reference = False

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Inside this context the policy predicts in float32, with the LoRA beside its weights, without gradients."""
        kept = self.dtype, self._null  # the same tensors come back: recorded calls read where they lie
        with self.for_once(), self._lora.beside(), widened(self.network, self._parameters):
            try:
                self.dtype = torch.float32
                self._null = self._cast_empty()
                yield
            finally:
                self.dtype, self._null = kept

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

    def _cast_empty(self) -> Conditioning:
        """The unconditional half's conditioning, in the network's dtype."""
        return each(self._empty or {}, lambda tensor: tensor.to(self.device, self.dtype))

    def _live_tensors(self) -> dict[str, FloatArray]:
        return {n: p.detach().cpu().numpy().copy() for n, p in self._parameters.items()}

    # -- the transition kernel ----------------------------------------------------------------------------

    def transition(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, schedule: Schedule | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, σ and x̂0 of π(x_{t+1} | x_t): one call of the network for both guidance halves.

        Args: x_t [N, C, H, W]; t int64 [N]; conditioning of N rows; schedule: None: the policy's.
        Returns: as `kernel.transition`.
        """
        schedule = schedule or self.schedule
        return transition(schedule, x_t, self.predict(x_t, t, conditioning, schedule), t)

    def log_prob(self, x_t: Tensor, x_next: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """log π(x_{t+1} | x_t), mean over the latent's elements: float32 [N]."""
        mean, sigma, _ = self.transition(x_t, t, conditioning)
        return gaussian_log_prob(x_next, mean, sigma)

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        schedule: Schedule | NoiseLevels | None = None,
        *,
        guided: bool = True,
    ) -> Tensor:
        """The network's output: float32 [N, C, H, W]. Args: as of `transition`; guided: False: as in pre-training."""
        times = (schedule or self.schedule).timesteps[t]
        learns = torch.is_grad_enabled() and not self._is_reference
        self.rows["trained" if learns else "forward"] += len(x_t) * (self.family.rows if guided else 1)
        if not guided:
            given = {name: tensor.to(self.dtype) for name, tensor in conditioning.items()}
            return self._run(x_t.to(self.dtype), times, given)
        predict = self._predict if self._graphs is None or torch.is_grad_enabled() else self._graphs
        return predict(x_t, times, *(conditioning[name] for name in sorted(conditioning)))

    def _predict(self, x_t: Tensor, times: Tensor, *given: Tensor) -> Tensor:
        """Args: given: the conditioning's tensors, in the order of their names."""
        x, rows = x_t.to(self.dtype), [tensor.to(self.dtype) for tensor in given]
        if not self.family.guided:
            return self._run(x, times, dict(zip(self._names, rows, strict=True)))
        both = {
            name: torch.cat([self._null[name].expand_as(own), own]) for name, own in zip(self._names, rows, strict=True)
        }
        unconditional, conditional = self._run(torch.cat([x, x]), torch.cat([times, times]), both).chunk(2)
        return unconditional + self.family.guidance_scale * (conditional - unconditional)

    def _run(self, x: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        return self.family.call(self.network, x, times, conditioning).float()

    # -- text and pictures --------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, prompt: str) -> Conditioning:
        """One prompt's conditioning; one at a time, so that its bits never depend on the batch."""
        return self.family.encode(self.texts, prompt)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents [N, C, H, W] → images uint8 [N, h, w, 3]. Raises: NonFiniteError: a NaN would become black."""
        if self.vae is None:
            raise RuntimeError("this policy was loaded without its image decoder")
        scaled = latents.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        if shift := self.vae.config.get("shift_factor"):
            scaled = scaled + shift
        slices = scaled.split(self._decode_batch or len(scaled))
        pixels = torch.cat([self.vae.decode(part).sample.float() for part in slices])
        bytes_ = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        here, finite = to_cpu([bytes_.permute(0, 2, 3, 1), all_finite(pixels)])
        images: NDArray[np.uint8] = here.numpy()
        if not finite:
            raise NonFiniteError("non-finite pixels (image decoder); try sampler.dtype=bfloat16 or float32")
        return images
