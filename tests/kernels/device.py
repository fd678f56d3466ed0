"""Where the Triton kernels run: on a GPU, or on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
