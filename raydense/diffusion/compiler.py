"""Networks that launch less: their blocks compiled, and on CUDA whole calls recorded and played again."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import Tensor, nn

BLOCKS = (  # of which U-Nets are made, and transformers
    ResnetBlock2D, Transformer2DModel, JointTransformerBlock, FluxTransformerBlock, FluxSingleTransformerBlock,
)  # fmt: skip
VERSIONS = 32  # of the code of one kind of block: other sizes, with a gradient and without, a LoRA merged or beside
SMALL = 16  # trajectories, each of two rows under guidance


def compile_blocks(network: nn.Module) -> None:
    """Compiles a network's repeated blocks in place, once a kind: a class with parameters of certain shapes.

    Batches of any size run the same code. What cannot be compiled as a whole, or needs more than `VERSIONS` versions,
    is an error of PyTorch's when it is first called.
    Raises: FileNotFoundError where there is no compiler.
    """
    check_compiler()
    torch._dynamo.config.recompile_limit = max(VERSIONS, torch._dynamo.config.recompile_limit)
    kinds: dict[Any, Callable[..., Any]] = {}
    for block in network.modules():
        if isinstance(block, BLOCKS):
            kind = type(block), tuple((name, p.shape, p.dtype) for name, p in block.named_parameters())
            if kind not in kinds:
                kinds[kind] = torch.compile(_own_code(type(block).forward), fullgraph=True, dynamic=False)
            block.forward = _any_batch(kinds[kind], block)


def _own_code(function: types.FunctionType) -> types.FunctionType:
    """The function with a code object of its own, by which PyTorch keeps, and looks through, what it compiled."""
    code, defaults = function.__code__.replace(), function.__defaults__
    own = types.FunctionType(code, function.__globals__, function.__name__, defaults, function.__closure__)
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def _any_batch(compiled: Callable[..., Any], block: nn.Module) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.ndim:
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return compiled(block, *args, **kwargs)

    return forward


class CudaGraphs:
    """A function of CUDA tensors, without gradients: small calls are recorded once for each shape, and played again.

    Thousands of launches become one; of more than `SMALL` rows, the device works longer than it takes to launch them.
    Whatever else the function reads must keep its place in memory; one thread at a time.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function, self._pool = function, torch.cuda.graph_pool_handle()
        self._recorded: dict[Any, tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        if len(inputs[0]) > SMALL:
            return self._function(*inputs)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record([tensor.clone() for tensor in inputs])
        own, graph, output = self._recorded[shapes]
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return output.clone()

    def forget(self) -> None:
        self._recorded.clear()
        self._pool = torch.cuda.graph_pool_handle()  # one that nothing uses any more is gone

    def _record(self, own: list[Tensor]) -> tuple[list[Tensor], torch.cuda.CUDAGraph, Tensor]:
        self._function(*own)  # compiles, and has libraries take the memory that they need
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):  # judges work beside it
            output = self._function(*own)
        return own, graph, output


def lacking_compiler() -> str | None:
    """What compiling needs of this machine beside PyTorch and is not here."""
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if shutil.which(name) is None:
        return f"the C++ compiler {name} (environment variable CXX)"
    return None if header.is_file() else f"Python's headers ({header})"


def check_compiler() -> None:
    """Raises: FileNotFoundError naming what is not there."""
    if lacking := lacking_compiler():
        raise FileNotFoundError(
            f"policy.compile=true needs {lacking}, which is not here; install it, or leave it at auto"
        )
