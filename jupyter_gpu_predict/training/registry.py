"""The versions of the learned models on disk, and which of them serve."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jupyter_core.paths import secure_write

from ..control.model_file import read_model_file
from ..errors import ConflictError, ModelFileError, NotFoundError

_VERSION = re.compile(r"(\d{4,})\.json")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """What is kept about one version of a model.

    `scores` are those on held-out owners, `baseline` those of the model it has to beat there.
    `data_hash` names the data it was trained on: `examples` rows of `owners` owners.
    """

    kind: str
    version: int
    made_s: float
    seed: int
    data_hash: str
    examples: int
    owners: int
    scores: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return how people call it, e.g. ``"demand 3"``."""
        return f"{self.kind} {self.version}"


class ModelRegistry:
    """One folder per kind of model: ``0001.json`` and so on, and ``serving.json``.

    A version never changes once it is written. What serves is a list in ``serving.json``, the
    latest last, so that the way back is known; a reader finds the old list or the new one.

    Parameters
    ----------
    folder
        Where; made when the first version is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def versions(self, kind: str) -> list[ModelVersion]:
        """Return what is kept about each version that can be read, oldest first."""
        found = []
        for number in self._numbers(kind):
            try:
                found.append(_about(self._read(kind, number), kind, number))
            except ModelFileError:
                continue
        return found

    def kinds(self) -> list[str]:
        """Return the kinds of models there are versions of."""
        if not self.folder.is_dir():
            return []
        return sorted(d.name for d in self.folder.iterdir() if self._numbers(d.name))

    def add(self, record: Mapping[str, Any], about: ModelVersion) -> ModelVersion:
        """Write a new version; it does not serve before it is promoted.

        Parameters
        ----------
        record
            The model as data.
        about
            What to keep about it; its number is chosen here.
        """
        folder = self.folder / about.kind
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A number is not used again, whatever was deleted: a worker knows a model by its file.
        known = [*self._numbers(about.kind), *self._history(about.kind)]
        number = max(known, default=0) + 1
        written = ModelVersion(**{**asdict(about), "version": number})
        _write(self._path(about.kind, number), {"about": asdict(written), **record})
        return written

    def read(self, kind: str, number: int) -> dict[str, Any]:
        """Return a version's content.

        Raises
        ------
        NotFoundError
            If there is no such version.
        ModelFileError
            If its file cannot be read.
        """
        if number not in self._numbers(kind):
            known = ", ".join(str(n) for n in self._numbers(kind)) or "none"
            raise NotFoundError(f"model {kind} {number}: no such version; there are: {known}")
        return self._read(kind, number)

    def serving(self, kind: str) -> int | None:
        """Return the number of the version that serves, ``None`` if none does."""
        return next(reversed(self._history(kind)), None)

    def promote(self, kind: str, number: int) -> None:
        """Let a version serve.

        Raises
        ------
        NotFoundError
            If there is no such version.
        ModelFileError
            If its file cannot be read; what serves goes on.
        """
        self.read(kind, number)
        history = [n for n in self._history(kind) if n != number]
        self._serve(kind, [*history, number])

    def rollback(self, kind: str) -> int | None:
        """Let the version before the present one serve; return its number, ``None`` if none is.

        Raises
        ------
        ConflictError
            If no version serves.
        """
        history = self._history(kind)
        if not history:
            raise ConflictError(f"model {kind}: no version serves, so there is no way back")
        self._serve(kind, history[:-1])
        return next(reversed(history[:-1]), None)

    def serving_path(self, kind: str) -> Path | None:
        """Return the file of the version that serves, ``None`` if none does.

        Where it is gone, that is the one that served before it.
        """
        paths = (self._path(kind, number) for number in reversed(self._history(kind)))
        return next((path for path in paths if path.exists()), None)

    def _numbers(self, kind: str) -> list[int]:
        try:
            names = os.listdir(self.folder / kind)
        except OSError:
            return []
        return sorted(int(m[1]) for m in map(_VERSION.fullmatch, names) if m)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / kind / f"{number:04d}.json"

    def _history(self, kind: str) -> list[int]:
        try:
            kept = json.loads((self.folder / kind / "serving.json").read_text())["serving"]
            return [n for n in kept if isinstance(n, int)]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _serve(self, kind: str, history: list[int]) -> None:
        _write(self.folder / kind / "serving.json", {"serving": history, "since_s": time.time()})

    def _read(self, kind: str, number: int) -> dict[str, Any]:
        remedy = "delete it and train again with jupyter gpu train"
        return read_model_file(self._path(kind, number), f"{kind} {number}", remedy)


def _about(record: Mapping[str, Any], kind: str, number: int) -> ModelVersion:
    try:
        return ModelVersion(**{**record["about"], "kind": kind, "version": number})
    except (KeyError, TypeError) as error:
        raise ModelFileError(
            f"model {kind} {number}: it does not say what it is ({error!r}); delete it"
        ) from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with secure_write(str(part)) as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
