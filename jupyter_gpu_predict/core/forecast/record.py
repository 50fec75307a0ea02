"""Forecasts as JSON objects and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...errors import BadInputError
from ..model import Backtest, Forecast, HorizonForecast, Quantiles


def forecast_to_record(forecast: Forecast) -> dict[str, Any]:
    """Return a forecast as plain JSON types."""
    return asdict(forecast)


def forecast_from_record(record: Mapping[str, Any]) -> Forecast:
    """Return the forecast that :func:`forecast_to_record` made `record` of.

    Raises
    ------
    BadInputError
        If a field is missing or of the wrong form.
    """
    try:
        backtest = record["backtest"]
        return Forecast(
            kernel_id=str(record["kernel_id"]),
            made_s=float(record["made_s"]),
            model=str(record["model"]),
            basis=str(record["basis"]),
            horizons=tuple(_horizon(item) for item in record["horizons"]),
            backtest=None if backtest is None else _backtest(backtest),
            candidates=tuple(_backtest(item) for item in record["candidates"]),
            notes=tuple(str(note) for note in record.get("notes", ())),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"forecast record: malformed field ({error!r}); drop it") from error


def _horizon(record: Mapping[str, Any]) -> HorizonForecast:
    memory = record["memory_bytes"]
    return HorizonForecast(
        horizon_s=int(record["horizon_s"]),
        memory_bytes=Quantiles(float(memory["low"]), float(memory["mid"]), float(memory["high"])),
        need_probability=float(record["need_probability"]),
    )


def _backtest(record: Mapping[str, Any]) -> Backtest:
    return Backtest(
        model=str(record["model"]),
        pinball=float(record["pinball"]),
        coverage=float(record["coverage"]),
        brier=float(record["brier"]),
        origins=int(record["origins"]),
    )
