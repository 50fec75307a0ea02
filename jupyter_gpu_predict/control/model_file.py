"""Files of learned models: JSON objects, read whole or refused."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..core.forecast.content import ContentModel
from ..errors import ModelFileError

MAX_FILE_BYTES = 1 << 26


def read_model_file(path: Path, name: str, remedy: str) -> dict[str, Any]:
    """Return the content of a model's file.

    Parameters
    ----------
    path
        The file.
    name, remedy
        For the message of an error: what the model is called, and what happens or is to be done.

    Raises
    ------
    ModelFileError
        If it cannot be read, is larger than :data:`MAX_FILE_BYTES`, or is no JSON object.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
        record = json.loads(path.read_bytes())
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"model {name}: {path.name} cannot be read ({error}); {remedy}"
        ) from error
    return record


def shipped_content() -> ContentModel:
    """Return the content model that serves where none was trained."""
    weights = files("jupyter_gpu_predict.core.forecast") / "weights" / "content.json"
    return ContentModel.from_record(json.loads(weights.read_text()))
