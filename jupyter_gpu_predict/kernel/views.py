"""Results of `%gpu`: plain data with a readable face."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.sizes import format_bytes

BAR_AFTER_S = 1.0
"""Work that is shorter shows no bar."""

BAR_EVERY_S = 0.25


class GpuResult:
    """What a `%gpu` command returns: a small table, with the data behind it in `data`."""

    def __init__(
        self,
        title: str,
        columns: Sequence[str] = (),
        rows: Sequence[Sequence[object]] = (),
        *,
        notes: Sequence[str] = (),
        data: Any = None,
    ) -> None:
        self.title = title
        self.columns = list(columns)
        self.rows = [[str(cell) for cell in row] for row in rows]
        self.notes = list(notes)
        self.data = data

    def __repr__(self) -> str:
        lines = [self.title]
        if self.rows:
            table = [self.columns, *self.rows]
            widths = [max(len(row[i]) for row in table) for i in range(len(self.columns))]
            lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
                      for row in table]  # fmt: skip
        return "\n".join(lines + self.notes)

    def _repr_html_(self) -> str:
        def cells(tag: str, row: Sequence[str]) -> str:
            return "".join(f"<{tag} style='text-align:left'>{html.escape(c)}</{tag}>" for c in row)

        parts = [f"<b>{html.escape(self.title)}</b>"]
        if self.rows:
            body = "".join(f"<tr>{cells('td', row)}</tr>" for row in self.rows)
            parts.append(
                f"<table><thead><tr>{cells('th', self.columns)}</tr></thead>"
                f"<tbody>{body}</tbody></table>"
            )
        parts += [f"<div>{html.escape(note)}</div>" for note in self.notes]
        return "".join(parts)


def forecast_result(data: Mapping[str, Any]) -> GpuResult:
    """Return a forecast: what is needed when, the next cells, and how its models have done."""
    rows = [
        (
            f"{h['horizon_s']} s",
            f"{h['need_probability']:.2f}",
            *(format_bytes(int(h["memory_bytes"][q])) for q in ("low", "mid", "high")),
        )
        for h in data["horizons"]
    ]
    score = data["backtest"]
    served = f"served by {data['model']} (history: {data['basis']})"
    if score is not None:
        served += (
            f", pinball {score['pinball']:.4f}, 80 % interval covered "
            f"{score['coverage']:.0%} over {score['origins']} origins"
        )
    notes = [
        f"Next, P {c['probability']:.2f}: code cell {c['position'] + 1}: {c['line']}"
        for c in data["next_cells"]
    ]
    for what, key in (("The next cell starts in", "next_s"), ("A GPU cell then takes", "burst_s")):
        if data[key] is not None:
            low, mid, high = (_duration(data[key][q]) for q in ("low", "mid", "high"))
            notes.append(f"{what} {mid} ({low} to {high}).")
    needs = ", ".join(map(_brier, data["needs"]))
    notes.append(f"P(needed) is {data['need_model']}'s. Brier score in this kernel: {needs}")
    if others := ", ".join(f"{c['model']} {c['pinball']:.4f}" for c in data["candidates"]):
        notes.append(f"Backtest (pinball, lower is better): {others}")
    return GpuResult(
        "Forecast of GPU demand, " + served,
        ("within", "P(needed)", "10 %", "50 %", "90 %"),
        rows,
        notes=[*notes, *data["notes"]],
        data=data,
    )


def _brier(need: Mapping[str, Any]) -> str:
    if need["brier"] is None:
        return f"{need['model']} not scored yet"
    return f"{need['model']} {need['brier']:.3f} over {need['outcomes']} idle moments"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class Bar:
    """Bytes done of bytes in all, in the output of the running cell; nothing for short work."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._began = self._shown_at = time.monotonic()
        self._handle: Any = None

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show the progress, if there is anything new to show."""
        now = time.monotonic()
        if now - self._began >= BAR_AFTER_S and now - self._shown_at >= BAR_EVERY_S:
            self._shown_at = now
            share = min(1.0, done_bytes / total_bytes) if total_bytes else 0.0
            self._show(share, f"{format_bytes(done_bytes)} of {format_bytes(total_bytes)}")

    def end(self, how: str) -> None:
        """Say how it ended, where a bar was shown."""
        if self._handle is not None:
            self._show(1.0 if how == "done" else None, how)

    def _show(self, share: float | None, text: str) -> None:
        from IPython.display import display

        line = "" if share is None else f"[{'#' * round(20 * share):<20}] {share:4.0%}  "
        mark = "" if share is None else f"<progress value='{share:.3f}'></progress> "
        data = {
            "text/plain": f"{self.what}: {line}{text}",
            "text/html": f"{html.escape(self.what)}: {mark}{html.escape(text)}",
        }
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


def show_offer(kernel: Any, offer: Mapping[str, Any], code: str) -> None:
    """Offer, in the output of the cell that begins, the last snapshot of a kernel that died."""
    if code.lstrip().startswith("%gpu restore"):
        return
    when = time.strftime("%H:%M:%S", time.localtime(offer["created_s"]))
    text = (
        f"This kernel was started anew after it had died: {offer['died']}. Its state of {when} is "
        f"saved (snapshot {offer['name']!r}, {offer['variables']} variables, "
        f"{format_bytes(offer['bytes'])}); this brings it back:"
    )
    kernel.session.send(
        kernel.iopub_socket,
        "display_data",
        {
            "data": {
                "text/plain": f"{text}  %gpu restore last",
                "text/html": f"{html.escape(text)} <code>%gpu restore last</code>",
            },
            "metadata": {},
            "transient": {},
        },
        parent=kernel.get_parent("shell"),
        ident=kernel._topic("display_data"),
    )
