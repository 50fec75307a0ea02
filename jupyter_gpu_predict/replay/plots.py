"""Figures of replays drawn: what a policy's delays are, against what its switches cost."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInputError

_LEAST = 1e-3
"""Where a figure of 0 is drawn on a logarithmic axis."""


def check_path(path: Path) -> None:
    """Raise `BadInputError` unless the name of the file is one of a plot."""
    if path.suffix.lower() not in {".png", ".html"}:
        raise BadInputError(f"{path}: plots are PNG or HTML; name it .png or .html")


def draw_plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw each case of the rows: mean delay against switching, and added delay in ratio to work.

    Raises
    ------
    BadInputError
        If the name of the file is neither ``.png`` nor ``.html``, or matplotlib is missing.
    """
    check_path(path)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadInputError("plots need matplotlib; pip install matplotlib") from None
    cases = list(dict.fromkeys(r["case"] for r in rows if r["metric"] == "XS"))
    if not cases:
        raise BadInputError(f"{path}: there is nothing to draw; replay something first")
    figure = Figure(figsize=(13, 4.5 * len(cases)), layout="constrained")
    for (left, right), case in zip(
        figure.subplots(len(cases), 2, squeeze=False), cases, strict=True
    ):
        _draw_case(left, right, case, [r for r in rows if r["case"] == case])
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    if path.suffix.lower() == ".png":
        path.write_bytes(image.getvalue())
        return
    data = base64.b64encode(image.getvalue()).decode("ascii")
    told = html.escape("; ".join(cases))
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>Replay</title>'
        f'<img alt="Delays and switching by policy: {told}" src="data:image/png;base64,{data}">',
        encoding="utf-8",
    )


def _draw_case(left: Any, right: Any, case: str, rows: Sequence[dict[str, Any]]) -> None:
    value = {(r["method"], r["metric"]): r["value"] for r in rows}
    methods = list(dict.fromkeys(r["method"] for r in rows if r["metric"] == "XS"))
    delays = [max(_LEAST, value[m, "mean"]) for m in methods]
    switching = [100 * value[m, "switching / work"] for m in methods]
    points = list(zip(switching, delays, strict=True))
    beaten = [any(p != q and p[0] <= q[0] and p[1] <= q[1] for p in points) for q in points]
    left.scatter(switching, delays, c=["tab:grey" if worse else "tab:blue" for worse in beaten])
    for name, point in zip(methods, points, strict=True):
        left.annotate(name, point, fontsize=7, xytext=(3, 3), textcoords="offset points")
    left.set(yscale="log", xlabel="switching / work, %", ylabel="mean added delay, s", title=case)
    right.barh(methods, [max(_LEAST, value[m, "XS"]) for m in methods])
    right.invert_yaxis()
    right.set(xscale="log", xlabel="XS: mean of added delay / max(work, 10 s)", title=case)
