"""The live timeline of a demo run, for a person at a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..core.sizes import format_bytes
from .facts import Facts

_SHOWN = {
    "kernel_started": ("opened", "white"),
    "forecast": ("forecast", "bright_black"),
    "claim": ("claims", "yellow"),
    "bound": ("bound", "green"),
    "prebound": ("pre-bound", "cyan"),
    "prebind_hit": ("pre-bind used", "bright_cyan"),
    "reclaimed": ("reclaimed", "magenta"),
    "restored": ("restored", "blue"),
    "snapshot": ("snapshot", "white"),
    "risk": ("risk", "red"),
    "cordoned": ("cordoned", "red"),
    "migration_started": ("migrating", "red"),
    "migration_failed": ("move failed", "bright_red"),
    "migrated": ("migrated", "bright_green"),
    "claim_refused": ("refused", "bright_red"),
    "kernel_ended": ("ended", "white"),
}
BAR = 40


class Timeline:
    """Prints a line for each event, above bars of what each GPU holds now."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began_s = time.time()
        self.gpus: list[dict[str, Any]] = []
        self.names: dict[str, str] = {}
        self.progress = ""
        self._live = Live(
            console=console, refresh_per_second=4, transient=True, get_renderable=self._bars
        )

    def __enter__(self) -> Timeline:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line of our own."""
        self.console.print(Text(f"{time.time() - self.began_s:7.1f} s  ").append(text, "bold"))

    def event(self, event: Mapping[str, Any]) -> None:
        """Print an event."""
        if event["kind"] not in _SHOWN:
            return
        what, style = _SHOWN[event["kind"]]
        line = Text(f"{event['t_s'] - self.began_s:7.1f} s  ")
        line.append(f"{what:13}", style)
        who = self.names.get(str(event.get("kernel_id")), "") or str(event.get("notebook") or "")
        line.append(f" {who.removesuffix('.ipynb'):22}")
        line.append(f" {event.get('gpu_uuid') or ''!s:10}")
        line.append(f" {_detail(event)}", "bright_black" if event["kind"] == "forecast" else "")
        self.console.print(line, overflow="ellipsis", no_wrap=True)

    def _bars(self) -> Group:
        lines: list[Text] = []
        for gpu in self.gpus:
            total = gpu["total_bytes"]
            line = Text(f"  {gpu['uuid']:10} ")
            used = 0
            for i, lease in enumerate(gpu["leases"]):
                width = round(BAR * lease["held_bytes"] / total)
                used += width
                line.append("█" * width, f"color({(i % 6) + 1})")
            line.append("░" * max(0, BAR - used))
            state = "cordoned" if gpu["cordoned"] else "ready"
            line.append(
                f" {format_bytes(gpu['held_bytes'])} of {format_bytes(total)}, {state}, "
                f"risk {gpu['risk']['level'] if gpu['risk'] else 'unknown'} (simulated)"
            )
            lines.append(line)
        return Group(*lines, Text(self.progress, "bold"))

    def table(self, facts: Facts) -> None:
        """Print the final table."""
        table = Table(title="What happened (simulated GPUs; counted from the event log)")
        table.add_column("fact")
        table.add_column("value", justify="right")
        model = facts.to_json()
        for key, value in model.items():
            if key == "claims":
                for name, figure in value.items():
                    table.add_row(f"claims: {name}", _figure(figure))
            elif key == "forecast_models":
                table.add_row(key, ", ".join(f"{m} {n}" for m, n in sorted(value.items())))
            elif key == "reclaimed_bytes":
                table.add_row(key, format_bytes(value))
            elif key != "faults":
                table.add_row(key, _figure(value))
        self.console.print(table)


def _detail(event: Mapping[str, Any]) -> str:
    kind = event["kind"]
    size = format_bytes(event["bytes"]) if event.get("bytes") else ""
    if kind == "forecast":
        score = (
            "no backtest yet"
            if event.get("pinball") is None
            else f"pinball {event['pinball']:.3f}, 80 % interval covered {event['coverage']:.0%}"
        )
        return (
            f"P(needed in 15 s) {event['need_15s']:.2f}, at most "
            f"{format_bytes(event['memory_high_bytes'])} (90 %), by {event['model']} ({score})"
        )
    if kind == "bound" and event.get("waited_s", 0) > 0.25:
        return f"{size} after {event['waited_s']:.1f} s. {event['reason']}"
    if kind in {"reclaimed", "restored"}:
        return f"{size} in {event['seconds']:.2f} s. {event.get('reason') or ''}"
    if kind == "migrated":
        return (
            f"from {event['source_gpu_uuid']} in {event['seconds']:.1f} s, "
            f"paused {event['pause_s']:.2f} s. {event['reason']}"
        )
    if kind == "migration_started":
        return f"to {event['target_gpu_uuid']}. {event['reason']}"
    if kind == "risk":
        return f"{event['level']}: {'; '.join(event['evidence'])}"
    return " ".join(x for x in (size, str(event.get("reason") or "")) if x)


def _figure(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
