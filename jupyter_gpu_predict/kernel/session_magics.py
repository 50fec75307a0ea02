"""`%gpu snapshot`, `snapshots` and `restore`."""

from __future__ import annotations

import contextlib
import re
import shlex
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..core.retention import LAST
from ..core.sizes import format_bytes
from ..errors import BadInputError, GpuPredictError
from .views import Bar, GpuResult

if TYPE_CHECKING:
    from .agent import Agent

_OPTIONS = re.compile(r"(?:^|\s)--")


class SessionCommands:
    """The commands that save sessions and bring them back."""

    def __init__(self, agent: Agent | None) -> None:
        self.agent = agent

    def _link(self) -> Agent:
        if self.agent is None:
            raise GpuPredictError(
                "no Jupyter server with jupyter_gpu_predict runs this kernel, so nothing is "
                "predicted, bound or reclaimed here; `%gpu` alone shows this machine's GPUs"
            )
        return self.agent

    def _ask(self, method: str, **params: Any) -> Any:
        return self._link().link.call(method, params)

    def do_snapshots(self, _: str) -> GpuResult:
        """List the saved sessions."""
        data = self._ask("snapshots")
        rows = [
            (
                s["name"],
                _when(s["created_s"]),
                s["reason"] or "",
                s["variables"],
                format_bytes(s["bytes"]),
                {True: "yes", False: "NO", None: ""}[s["verified"]],
                s["id"],
            )
            for s in data
        ]
        return GpuResult(
            "Snapshots" if rows else "No snapshots yet; `%gpu snapshot NAME` takes one.",
            ("name", "when", "why", "variables", "size", "verified", "id"),
            rows,
            data=data,
        )

    def do_snapshot(self, name: str) -> GpuResult:
        """Save this session now."""
        from .messages import SnapshotRequest
        from .state import save_state

        if name == LAST:
            raise BadInputError(
                f"a snapshot cannot be called {LAST!r}: `%gpu restore {LAST}` means the latest one"
            )
        agent = self._link()
        config = agent.config
        wanted = name or time.strftime("snapshot-%Y%m%d-%H%M%S")
        request = SnapshotRequest(
            wanted, config.snapshot_folder, config.key_path, notebook=config.notebook
        )
        with _bar(f"Saving {wanted!r}") as bar:
            report = save_state(agent, request, progress=bar)
        self._tell("snapshot_taken", **{k: v for k, v in report.items() if k != "variables"})
        return _variables(f"Snapshot {wanted!r}: {format_bytes(report['bytes_written'])} written "
                          f"in {report['seconds']:.2f} s", report, "saved")  # fmt: skip

    def do_restore(self, words: str) -> GpuResult:
        """Bring a saved session back into this kernel."""
        from .messages import RestoreRequest
        from .state import find_snapshot, load_state

        name, only, recompute = parse_restore(words)
        agent = self._link()
        config = agent.config
        request = RestoreRequest(
            find_snapshot(agent, name),
            config.snapshot_folder,
            config.key_path,
            only=only,
            recompute=recompute or config.recompute,
        )
        with _bar(f"Restoring {name!r}") as bar:
            report = load_state(agent, request, in_cell=True, progress=bar)
        self._tell("snapshot_restored", snapshot_id=report["snapshot_id"])
        return _variables(f"Restored {report['name']!r}", report, "restored")

    def _tell(self, method: str, **params: Any) -> None:
        """Tell the server what was done; that it does not answer changes nothing about that."""
        with contextlib.suppress(GpuPredictError):
            self._ask(method, **params)


def parse_restore(words: str) -> tuple[str, tuple[str, ...], bool]:
    """Return the name, the variables wanted (none: all) and whether to recompute.

    Raises
    ------
    BadInputError
        If there is no name, or an option that nobody knows.
    """
    cut = _OPTIONS.search(words)
    name, rest = (words, "") if cut is None else (words[: cut.start()], words[cut.start() :])
    name = name.strip()
    if not name:
        raise BadInputError(
            "%gpu restore: say which; `%gpu snapshots` lists them, `last` is the latest one"
        )
    only: list[str] = []
    recompute = False
    try:
        options = iter(shlex.split(rest))
    except ValueError as error:
        raise BadInputError(f"%gpu restore {name}: {error}") from None
    for option in options:
        key, equals, value = option.partition("=")
        if key == "--recompute" and not equals:
            recompute = True
        elif key == "--only":
            value = value if equals else next(options, "")
            only += [n.strip() for n in value.split(",") if n.strip()]
            if not only:
                raise BadInputError("%gpu restore --only: name variables, as in `--only model,opt`")
        else:
            raise BadInputError(
                f"%gpu restore: {option!r} is unknown; it takes --only a,b and --recompute"
            )
    return name, tuple(only), recompute


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Bar]:
    bar = Bar(what)
    try:
        yield bar
    except KeyboardInterrupt:
        bar.end("interrupted; nothing was changed")
        raise
    except BaseException:
        bar.end("it failed; nothing was changed")
        raise
    bar.end("done")


def _variables(title: str, report: dict[str, Any], plain: str) -> GpuResult:
    """Return the report of a snapshot: a line for each variable that is not plainly in it."""
    variables = report["variables"]
    odd = [v for v in variables if v["status"] != plain or v["reason"]]
    said = {f"{v['name']}: {v['reason']}" for v in odd}
    fine = sum(v["status"] == plain for v in variables)
    differences = [f"Made elsewhere: {text}" for text in report.get("differences", ())]
    return GpuResult(
        "\n".join([*differences, f"{title}; {fine} of {len(variables)} variables {plain}"]),
        ("variable", "type", "status", "reason"),
        [(v["name"], v["type_name"], v["status"], v["reason"] or "") for v in odd],
        notes=[note for note in report["notes"] if note not in said],
        data=report,
    )


def _when(t_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(t_s))
