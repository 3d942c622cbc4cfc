"""Where `tests/gpu` runs: on a GPU, or every line of it on a CPU, with small networks."""

from __future__ import annotations

import os

import pytest
import torch

REHEARSAL = os.environ.get("RAYDENSE_REHEARSE") == "cpu"
DEVICE = torch.device("cpu" if REHEARSAL else "cuda")
ON_A_GPU = [
    pytest.mark.gpu,
    pytest.mark.timeout(280),
    pytest.mark.skipif(not REHEARSAL and not torch.cuda.is_available(), reason="no CUDA device"),
]
