"""A torch model, Adam with its state, and a scheduler: about 600 MB."""

from __future__ import annotations

from collections.abc import Callable

from ..session import Change, Namespace, Session, checksum


def session(scale: float) -> Session:
    # Weights grow with the square of the width.
    side = scale**0.5
    words, inner, width = int(10_000 * side), int(1024 * side), int(4096 * side)
    cells = (
        "import torch\nfrom torch import nn",
        (
            f"torch.manual_seed(0)\nnet = Net({words}, {inner}, {width})\n"
            "opt = torch.optim.Adam(net.parameters(), lr=1e-3)\n"
            "sched = torch.optim.lr_scheduler.StepLR(opt, 10)"
        ),
        (
            "x = torch.arange(32); y = torch.arange(32) % 10\n"
            "loss = nn.functional.cross_entropy(net(x), y); loss.backward(); opt.step()\n"
            "opt.zero_grad(set_to_none=True); loss = loss.detach(); losses = [loss.item()]"
        ),
    )
    changes = (Change("change", "net.body[6].weight.data.add_(0.01); losses.append(1.0)"),)
    return Session(
        # Making an optimizer imports the second: whoever restores one must not pay for it.
        ("torch", "torch._dynamo"),
        cells,
        changes,
        _values,
        _aliases,
        classes="network",
        extra_methods=("torch.save",),
    )


def _values(g: Namespace) -> dict[str, Callable[[], object]]:
    def state() -> object:
        return [
            (sorted(s), checksum(s["exp_avg"]), checksum(s["exp_avg_sq"]), s["step"].item())
            for s in g["opt"].state.values()
        ]

    def next_gradient() -> object:
        import torch

        net = g["net"]
        loss = torch.nn.functional.cross_entropy(net(g["x"]), g["y"])
        grads = torch.autograd.grad(loss, list(net.parameters()))
        return loss.item(), sum(t.double().abs().sum().item() for t in grads)

    return {
        "weights": lambda: [(k, checksum(v)) for k, v in g["net"].state_dict().items()],
        "optimizer's state": state,
        "optimizer's options": lambda: [
            {k: v for k, v in group.items() if k != "params"} for group in g["opt"].param_groups
        ],
        "scheduler": lambda: (g["sched"].last_epoch, g["sched"].step_size),
        "gradient to come": next_gradient,
        "batch": lambda: (g["x"].tolist(), g["y"].tolist()),
        "losses": lambda: (g["loss"].item(), g["losses"]),
    }


def _aliases(g: Namespace) -> dict[str, Callable[[], object]]:
    def params() -> list[object]:
        return list(g["net"].parameters())

    def trains() -> bool:
        """Take a step: the optimizer must move the weights that the model computes with."""
        before = checksum(g["net"].body[0].weight)
        loss = g["torch"].nn.functional.cross_entropy(g["net"](g["x"]), g["y"])
        loss.backward()
        g["opt"].step()
        return checksum(g["net"].body[0].weight) != before

    return {
        "optimizer's parameters are the model's": lambda: all(
            a is b for a, b in zip(g["opt"].param_groups[0]["params"], params(), strict=True)
        ),
        "optimizer's state is keyed by them": lambda: all(p in g["opt"].state for p in params()),
        "scheduler's optimizer": lambda: g["sched"].optimizer is g["opt"],
        "model's class": lambda: type(g["net"]) is g["Net"],
        "training moves the model": trains,
    }
