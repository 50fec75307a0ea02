"""A learned model of when a series is busy: two gradient-boosted classifiers, kept as data.

They are trained on other series (:mod:`jupyter_gpu_predict.training.demand`), so they know from the
first minute on how use goes on and comes back; a series' own past enters as features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ...errors import GpuPredictError, ModelFileError
from .occupancy import FEATURES, Array

FORMAT = 1

KIND = "demand"


@dataclass(frozen=True, slots=True)
class DemandModel:
    """P(busy) some steps ahead, and within them; `name` names the version it came from."""

    name: str
    at: Any
    within: Any

    def busy_at(self, features: Array) -> list[float]:
        """Return P(the step that far ahead is busy), one for each row of features."""
        return _predicted(self.at, features)

    def busy_within(self, features: Array) -> list[float]:
        """Return P(any step up to that far ahead is busy), one for each row of features."""
        return _predicted(self.within, features)


def demand_model(record: Mapping[str, Any], name: str) -> DemandModel:
    """Return the model that a model file's content describes.

    Parameters
    ----------
    record
        As :func:`demand_record` makes it.
    name
        What to call it, e.g. its version.

    Raises
    ------
    ModelFileError
        If it is of another format, kind or other features, or a classifier cannot be read.
    GpuPredictError
        If LightGBM is not there.
    """
    check_header(record, KIND, FORMAT, name)
    if tuple(record.get("features", ())) != FEATURES:
        raise ModelFileError(
            f"model {name}: it was trained on other features than this version computes; train it "
            "again with jupyter gpu train"
        )
    return DemandModel(name, _booster(record, "at", name), _booster(record, "within", name))


def demand_record(at: Any, within: Any) -> dict[str, Any]:
    """Return two trained classifiers as the content of a model file.

    They are kept in LightGBM's own text format, each with the digest of its text.
    """
    parts = {"at": at.model_to_string(), "within": within.model_to_string()}
    return {
        "format": FORMAT,
        "kind": KIND,
        "features": list(FEATURES),
        **parts,
        "digests": {part: _digest(text) for part, text in parts.items()},
    }


def check_header(record: Mapping[str, Any], kind: str, version: int, name: str) -> None:
    """Refuse the content of a model file of another kind or format.

    Raises
    ------
    ModelFileError
        If it is.
    """
    if record.get("kind") != kind or record.get("format") != version:
        raise ModelFileError(
            f"model {name}: kind {record.get('kind')!r} in format {record.get('format')!r}, not "
            f"{kind!r} in format {version}; train it again with jupyter gpu train"
        )


def _booster(record: Mapping[str, Any], part: str, name: str) -> Any:
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise GpuPredictError(
            f"lightgbm cannot be imported ({error}); reinstall it with pip install lightgbm"
        ) from error
    text, digests = record.get(part), record.get("digests")
    # LightGBM ends the whole process over a text that was cut short.
    if not (
        isinstance(text, str)
        and isinstance(digests, Mapping)
        and _digest(text) == digests.get(part)
    ):
        raise ModelFileError(
            f"model {name}: its classifier {part!r} is not what was written; train it again with "
            "jupyter gpu train"
        )
    return lightgbm.Booster(model_str=text)


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _predicted(booster: Any, features: Array) -> list[float]:
    # One thread: OpenMP's threads spin on a busy machine and cost more than they bring.
    return [float(p) for p in booster.predict(features, num_threads=1)]
