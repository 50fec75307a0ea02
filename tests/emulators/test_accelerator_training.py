"""Training on the emulated accelerator, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from emulators.accelerator import Worker

# Whichever test comes first builds the library.
pytestmark = pytest.mark.timeout(600)


def _train(device: str, steps: int, foreach: bool, autocast: bool) -> Any:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(7)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    model = torch.nn.Sequential(
        torch.nn.Embedding(11, 16), torch.nn.TransformerEncoder(layer, 1), torch.nn.Linear(16, 11)
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, foreach=foreach)
    scaler = torch.amp.GradScaler("emu", enabled=autocast)
    losses = []
    for _ in range(steps):
        tokens = torch.randint(11, (4, 6), device=device)
        with torch.autocast("emu", dtype=torch.float16, enabled=autocast):
            scores = model(tokens)
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert all(p.device == torch.device(device) for p in model.parameters())
    return losses, [p.detach().cpu() for p in model.parameters()], str(scores.dtype)


def training_is_repeatable(foreach: bool, autocast: bool, steps: int) -> tuple[bool, float, str]:
    import torch

    first, weights, dtype = _train("emu:1", steps, foreach, autocast)
    again, same, _ = _train("emu:1", steps, foreach, autocast)
    equal = all(map(torch.equal, weights, same)) and first == again
    return equal, first[-1] / first[0], dtype


@pytest.mark.parametrize(
    ("foreach", "autocast", "steps"), [(True, False, 50), (False, False, 20), (True, True, 20)]
)
def test_training_learns_and_two_runs_are_bit_identical(
    worker: Worker, foreach: bool, autocast: bool, steps: int
) -> None:
    equal, progress, dtype = worker.call(training_is_repeatable, foreach, autocast, steps)
    assert equal
    assert progress < 0.8
    assert dtype == ("torch.float16" if autocast else "torch.float32")


def weights_beside_cpu() -> float:
    import torch

    def weights(device: str, optimizer: type[torch.optim.Optimizer]) -> torch.Tensor:
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        inputs = torch.randn(32, 8)
        model, inputs = model.to(device), inputs.to(device)
        steps = optimizer(model.parameters(), lr=1e-2)
        for _ in range(10):
            steps.zero_grad()
            (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean().backward()
            steps.step()
        return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])

    return max(
        (weights("cpu", kind) - weights("emu", kind)).abs().max().item()
        for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    )


def test_a_model_learns_the_same_weights_as_on_the_cpu(worker: Worker) -> None:
    assert worker.call(weights_beside_cpu) < 1e-5


def modules_run() -> list[str]:
    import torch
    from torch.nn import functional

    ran = []
    for module, shape in (
        (torch.nn.LSTM(4, 5), (3, 2, 4)),
        (torch.nn.GRU(4, 5), (3, 2, 4)),
        (torch.nn.Conv2d(1, 2, 3), (1, 1, 5, 5)),
        (torch.nn.ConvTranspose1d(2, 4, 3, groups=2), (1, 2, 5)),
        (torch.nn.BatchNorm1d(4), (3, 4)),
        (torch.nn.LayerNorm(4), (3, 4)),
    ):
        inputs = torch.randn(*shape)
        expected = module(inputs)
        module.to("emu")
        result = module(inputs.to("emu"))
        if isinstance(result, tuple):
            result, expected = result[0], expected[0]
        assert torch.allclose(result.cpu(), expected, atol=1e-5)
        result.pow(2).sum().backward()
        assert all(p.grad.device.type == "emu" for p in module.parameters())
        ran.append(type(module).__name__)
    query = torch.randn(1, 2, 3, 4, device="emu", requires_grad=True)
    functional.scaled_dot_product_attention(query, query, query, dropout_p=0.1).sum().backward()
    assert query.grad.abs().sum().item() > 0
    return ran


def test_common_modules_run_forward_and_backward_with_the_cpus_results(worker: Worker) -> None:
    assert len(worker.call(modules_run)) == 6


def batches(folder: str) -> list[tuple[bool, str, float]]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.ones(1, device="emu")  # the loader's process is forked from one that uses the device
    loader = DataLoader(
        TensorDataset(torch.arange(8.0)), batch_size=4, num_workers=1, pin_memory=True
    )
    return [
        (b.is_pinned(), str(m.device), m.sum().item())
        for (b,) in loader
        for m in [b.to("emu", non_blocking=True)]
    ]


def test_a_data_loader_pins_what_its_processes_load(worker: Worker, tmp_path: Path) -> None:
    assert worker.call(batches, str(tmp_path)) == [(True, "emu:0", 6.0), (True, "emu:0", 22.0)]
