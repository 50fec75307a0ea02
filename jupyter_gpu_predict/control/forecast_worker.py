"""The process in which forecasts are made: requests on stdin, answers on stdout, JSON lines.

``python -m jupyter_gpu_predict.control.forecast_worker [LIMIT_S]`` answers a request
``{"id", "kernel_id", "samples", "runs", "prior_runs", "basis", "now_s", "horizons_s", "models",
"situation"}``, where "models" has the file of each kind of learned model or null, and "situation"
is null where the notebook is not known, with ``{"id", "forecast", "notes", "cpu_s", "scored"}`` or
``{"id", "error": {"reason", "message"}}``.
Records travel as arrays, see :mod:`..core.trace.rows`. Its first line is ``{"ready": ...}``.
It ends with its stdin, and by SIGALRM when one request takes longer than LIMIT_S seconds, so that
a worker that hangs does not outlive a server that was killed.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from ..core.forecast.boosted import Boosted
from ..core.forecast.content import NAME as CONTENT
from ..core.forecast.content import ContentModel, forecast_content
from ..core.forecast.demand_model import KIND as DEMAND
from ..core.forecast.demand_model import demand_model
from ..core.forecast.protocol import Forecaster
from ..core.forecast.record import forecast_to_record
from ..core.forecast.selection import Evaluation, default_models, make_forecast
from ..core.forecast.serving import known_peaks, with_content
from ..core.forecast.situation_record import situation_from_record
from ..core.model import Forecast
from ..core.trace.rows import run_from_row, sample_from_row
from ..core.trace.series import demand_series
from ..errors import GpuPredictError
from .model_file import read_model_file, shipped_content

DEFAULT_LIMIT_S = 120.0

NICENESS = 10

MAX_KERNELS = 512
"""Kernels whose latest backtest is remembered."""

SEED = 1
"""Prophet samples from numpy's global generator; a forecast must not depend on the one before."""

Model = TypeVar("Model")


class Learned(Generic[Model]):
    """A learned model of one kind; one that cannot be read leaves the one before it serving.

    Parameters
    ----------
    load
        Makes the model from a file's content and its name.
    shipped
        Serves where no file is named.
    """

    def __init__(self, load: Callable[[dict[str, Any], str], Model], shipped: Model) -> None:
        self.notes: tuple[str, ...] = ()
        self._load = load
        self._shipped = self._model = shipped
        self._known: tuple[str, int] | None = None

    def model(self, file: str | None) -> Model:
        """Return the model of a file, or the shipped one if no file is named."""
        known = None if file is None else (file, _stamp(file))
        if known != self._known:
            self._known, self.notes = known, ()
            try:
                self._model = self._shipped if file is None else self._read(Path(file))
            except Exception as error:
                # Whatever a file brings about: it must not cost the forecasts of the other models.
                self.notes = (str(error) or repr(error),)
        return self._model

    def _read(self, path: Path) -> Model:
        name = f"{path.parent.name} {path.stem.lstrip('0')}"
        record = read_model_file(path, name, "the one before it goes on serving")
        return self._load(record, name)


def _stamp(file: str) -> int:
    """Return what changes when a file is written anew, -1 if it cannot be seen."""
    try:
        return os.stat(file).st_mtime_ns
    except OSError:
        return -1


class Zoo:
    """The learned models, and the latest backtest of each kernel."""

    def __init__(self) -> None:
        self.evaluations: OrderedDict[str, Evaluation] = OrderedDict()
        self.demand = Learned[tuple[Forecaster, ...]](
            lambda record, name: (Boosted(demand_model(record, name)),), ()
        )
        self.content = Learned(
            lambda record, _: ContentModel.from_record(record), shipped_content()
        )

    def keep(self, kernel_id: str, evaluation: Evaluation | None) -> None:
        """Remember a kernel's latest backtest."""
        if evaluation is not None:
            self.evaluations[kernel_id] = evaluation
            if len(self.evaluations) > MAX_KERNELS:
                self.evaluations.popitem(last=False)


def main() -> int:
    """Answer requests until stdin ends."""
    limit_s = float(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_LIMIT_S
    requests, answers = _take_pipes()
    os.nice(NICENESS)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    _prepare_libraries()
    _write(answers, {"ready": {"pid": os.getpid(), "cpu_s": _cpu_s()}})
    zoo = Zoo()
    for line in requests:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        answer = _answer(line, zoo)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(answers, answer)
    return 0


def _take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Keep stdin and stdout for the protocol; what libraries print goes to stderr."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _prepare_libraries() -> None:
    """Import Prophet once, on one thread and without its chatter."""
    for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "STAN"):
        os.environ[f"{name}_NUM_THREADS"] = "1"
    # A server started from a notebook hands on a backend that only exists there.
    os.environ["MPLBACKEND"] = "Agg"
    warnings.simplefilter("ignore")
    for name in ("cmdstanpy", "prophet", "prophet.plot"):
        logging.getLogger(name).disabled = True
    try:
        import prophet  # noqa: F401
    except ImportError:
        # The other models serve; each forecast's notes say that prophet is missing and why.
        traceback.print_exc()


def _write(answers: IO[bytes], message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message, allow_nan=False).encode() + b"\n")
    answers.flush()


def _cpu_s() -> float:
    """Return the processor time of this process and of the finished fits, in seconds."""
    spent = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        spent += usage.ru_utime + usage.ru_stime
    return spent


def _answer(line: bytes, zoo: Zoo) -> dict[str, Any]:
    number: Any = None
    begun_s = _cpu_s()
    try:
        request = json.loads(line)
        number = request["id"]
        answer = _forecast(request, zoo)
    except GpuPredictError as error:
        return {"id": number, "error": {"reason": error.reason, "message": str(error)}}
    except Exception as error:
        # Foreign code (Prophet, pandas, Stan) may raise anything; the others still want answers.
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        return {"id": number, "error": {"reason": "unexpected", "message": message}}
    return {"id": number, "cpu_s": _cpu_s() - begun_s, **answer}


def _forecast(request: Mapping[str, Any], zoo: Zoo) -> dict[str, Any]:
    kernel_id = str(request["kernel_id"])
    now_s = float(request["now_s"])
    series = demand_series(
        [sample_from_row(kernel_id, row) for row in request["samples"]],
        [run_from_row(row) for row in request["runs"]],
        now_s=now_s,
    )
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    last = zoo.evaluations.pop(kernel_id, None)
    learned = zoo.demand.model(request["models"].get(DEMAND))
    made = make_forecast(
        kernel_id,
        series,
        [run_from_row(row) for row in request["prior_runs"]],
        str(request["basis"]),
        now_s,
        horizons_s=tuple(request["horizons_s"]),
        models=(*default_models(), *learned),
        last=last,
    )
    zoo.keep(kernel_id, made.evaluation)
    forecast = replace(made.forecast, notes=(*made.notes, *zoo.demand.notes))
    if request["situation"] is not None:
        forecast = _with_content(forecast, request, zoo.content)
    return {
        "forecast": forecast_to_record(forecast),
        "notes": forecast.notes,
        "scored": made.evaluation is not None and made.evaluation is not last,
    }


def _with_content(
    forecast: Forecast, request: Mapping[str, Any], learned: Learned[ContentModel]
) -> Forecast:
    model = learned.model(request["models"].get(CONTENT))
    try:
        situation = known_peaks(situation_from_record(request["situation"]))
        said = forecast_content(model, situation, tuple(request["horizons_s"]))
    except Exception as error:
        # What a notebook brings about must not cost the forecast by timing.
        return replace(forecast, notes=(*forecast.notes, f"{CONTENT}: {error!r}"))
    found = with_content(forecast, said)
    return replace(found, notes=(*found.notes, *learned.notes))


if __name__ == "__main__":
    sys.exit(main())
