"""Forecasts as JSON objects and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...errors import BadInputError
from ..model import Backtest, Forecast, HorizonForecast, NeedForecast, NextCell, Quantiles


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
            need_model=str(record.get("need_model", "")),
            needs=tuple(_need(item) for item in record.get("needs", ())),
            next_cells=tuple(NextCell(**item) for item in record.get("next_cells", ())),
            next_s=_maybe(record.get("next_s")),
            burst_s=_maybe(record.get("burst_s")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"forecast record: malformed field ({error!r}); drop it") from error


def _horizon(record: Mapping[str, Any]) -> HorizonForecast:
    return HorizonForecast(
        horizon_s=int(record["horizon_s"]),
        memory_bytes=_quantiles(record["memory_bytes"]),
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


def _need(record: Mapping[str, Any]) -> NeedForecast:
    brier = record["brier"]
    return NeedForecast(
        model=str(record["model"]),
        probabilities=tuple(float(p) for p in record["probabilities"]),
        brier=None if brier is None else float(brier),
        outcomes=int(record["outcomes"]),
    )


def _maybe(record: Mapping[str, Any] | None) -> Quantiles | None:
    return None if record is None else _quantiles(record)


def _quantiles(record: Mapping[str, Any]) -> Quantiles:
    return Quantiles(float(record["low"]), float(record["mid"]), float(record["high"]))
