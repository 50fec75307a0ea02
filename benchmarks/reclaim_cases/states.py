"""What is held when memory is taken back, by the number of bytes."""

from __future__ import annotations

from typing import Any

import torch


def one(nbytes: int, device: str) -> Any:
    """Return one storage."""
    return [filled(nbytes // 4, device)]


def many(nbytes: int, device: str) -> Any:
    """Return 10,000 storages."""
    return [filled(nbytes // 40_000, device) for _ in range(10_000)]


def transformer(nbytes: int, device: str) -> Any:
    """Return a transformer after a step of Adam: weights, gradients, two moments each."""
    width = 512
    layer_bytes = 4 * 4 * 12 * width**2
    layers = max(1, nbytes // layer_bytes)
    model = torch.nn.ModuleList(
        torch.nn.TransformerEncoderLayer(width, 8, 4 * width, device=device, batch_first=True)
        for _ in range(layers)
    )
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer


def variables(nbytes: int, device: str) -> Any:
    """Return a hundred variables of a notebook, of which the next cell names one."""
    return {f"t{i}": filled(nbytes // 400, device) for i in range(100)}


def filled(count: int, device: str) -> torch.Tensor:
    """Return memory that was really written."""
    return torch.full((count,), 1.5, device=device)


STATES = {"one storage": one, "10,000 storages": many, "transformer with Adam": transformer}
