"""Gradient features as they were published: one row at a time, flattened, projected by a dense random matrix.

For every row a forward pass, the mean loss over the scored tokens, a backward pass through the adapter by autograd, all
gradients flattened into one vector of P numbers, Adam's form of it.  Every 16 rows are projected: a matrix of ±1, (P,
128), is drawn for 128 columns of the projection, multiplied, and drawn again for the next rows (TRAK's plain projector,
with the sizes that LESS gives it).  Each row is divided by its length.

The matrix is drawn and used in pieces that fit a cache, and on a CPU from random bits, a twelfth of the time of
``bernoulli_``, which the published projector calls: ``drawing="bernoulli"`` is that.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from common import synchronize

from curate.models import lora as adapters
from curate.models.base import DType, Row
from curate.models.gradients import Adam
from curate.models.lora import Lora, Weights
from curate.models.weights import load_weights
from curate.seeding import rng_for

ROWS, COLUMNS = 16, 128


class Published:
    """One row at a time.  ``columns`` of the d are projected, and their time counts d / columns times."""

    def __init__(self, model: str, lora: Lora, weights: Weights, adam: Adam, *, dtype: DType, device: str) -> None:
        adapted = adapters.attach(load_weights(model, dtype), lora, name=model).to(device).eval()
        adapters.put(adapted, weights)
        self.model, self.device, self.adam = adapted, device, adam
        self.parameters = adapters.parameters(adapted)
        self.first, self.second = (
            torch.cat([torch.from_numpy(its[name]).flatten() for name in self.parameters]).to(device)
            for its in (adam.first, adam.second)
        )

    def gradient(self, row: Row) -> torch.Tensor:
        """Return ∂L/∂θ, flat, float32 (P,)."""
        ids, mask = row
        labels = np.where(mask, ids, -100)
        inputs, targets = (torch.from_numpy(x.astype(np.int64))[None].to(self.device) for x in (ids, labels))
        self.model.zero_grad(set_to_none=True)
        self.model(input_ids=inputs, labels=targets).loss.backward()
        return torch.cat([p.grad.flatten() for p in self.parameters.values()]).float()

    def step(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return Γ, with ε inside of the root."""
        a = self.adam
        first = a.beta1 * self.first + (1 - a.beta1) * gradient
        second = a.beta2 * self.second + (1 - a.beta2) * gradient.square()
        return first / torch.sqrt(second + a.eps)

    def seconds(
        self, rows: Sequence[Row], d: int, columns: int, drawing: Literal["bits", "bernoulli"]
    ) -> tuple[float, float]:
        """Return the time of the gradients of rows, and of their projection to d numbers, measured on ``columns``."""
        of_gradients = of_projection = 0.0
        for start in range(0, len(rows), ROWS):
            synchronize(self.device)
            began = time.perf_counter()
            steps = torch.stack([self.step(self.gradient(row)) for row in rows[start : start + ROWS]])
            synchronize(self.device)
            turned = time.perf_counter()
            features = self.project(steps, columns, drawing)
            features /= torch.linalg.vector_norm(features, dim=1, keepdim=True)
            features.half().cpu()
            of_gradients += turned - began
            of_projection += time.perf_counter() - turned
        return of_gradients, of_projection * d / columns

    def project(self, steps: torch.Tensor, d: int, drawing: Literal["bits", "bernoulli"] = "bits") -> torch.Tensor:
        """Return (n, d) of flat vectors (n, P)."""
        cuda = self.device.startswith("cuda")
        piece = 2**21 if cuda else 2**15
        dtype = torch.float16 if cuda else torch.float32  # as LESS; half products are slow on most CPUs
        out = torch.zeros(len(steps), d, device=self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        bits = rng_for(0, "published")
        for column in range(0, d, COLUMNS):
            for start in range(0, steps.shape[1], piece):
                part = steps[:, start : start + piece].to(dtype)
                shape = part.shape[1], min(COLUMNS, d - column)
                matrix = _bits(bits, shape) if drawing == "bits" and not cuda else _bernoulli(generator, shape, dtype)
                out[:, column : column + COLUMNS] += part @ matrix
        return out


def _bits(rng: np.random.Generator, shape: tuple[int, int]) -> torch.Tensor:
    count = shape[0] * shape[1]
    drawn = np.unpackbits(np.frombuffer(rng.bytes(-(-count // 8)), dtype=np.uint8), count=count).view(np.int8)
    return torch.from_numpy(drawn).mul_(2).sub_(1).view(shape).float()


def _bernoulli(generator: torch.Generator, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    matrix: Any = torch.empty(shape, dtype=dtype, device=generator.device)
    return matrix.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
