"""Names of snapshots and the lines of their list."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import BadInputError, NotFoundError

MAX_NAME_LENGTH = 128

ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{12}\Z")
KIND = re.compile(r"[a-z][a-z0-9_]{0,31}\Z")


def validate_name(name: str) -> str:
    """Return `name` if it can name a snapshot.

    Raises
    ------
    BadInputError
        If it is empty, longer than 128 characters, starts with a dot, or holds ``/``, ``..``, NUL
        or another control character.
    """
    if not isinstance(name, str) or not name:
        raise BadInputError("a snapshot needs a name; give it at least one character")
    shown = name if len(name) <= 40 else name[:40] + "…"
    if len(name) > MAX_NAME_LENGTH:
        raise BadInputError(
            f"snapshot name {shown!r} has {len(name)} characters; use at most {MAX_NAME_LENGTH}"
        )
    if name.startswith("."):
        raise BadInputError(f"snapshot name {shown!r} starts with a dot; leave the dot away")
    if "/" in name or "\\" in name or ".." in name:
        raise BadInputError(f"snapshot name {shown!r} holds '/', '\\' or '..'; use a plain name")
    if not name.isprintable():
        raise BadInputError(f"snapshot name {shown!r} holds control characters; use a plain name")
    return name


def manifest_object(snapshot_id: str) -> str:
    """Return the name of the object that holds a manifest.

    Raises
    ------
    NotFoundError
        If no snapshot can have this id.
    """
    if not ID.match(validate_name(snapshot_id)):
        raise NotFoundError(f"there is no snapshot {snapshot_id!r}")
    return f"manifests/{snapshot_id}.json"


def to_json(document: Mapping[str, Any]) -> bytes:
    """Return a document as it is kept."""
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A line of the catalogue; read without checking the signature, so only good for showing.

    `verified` says how the last verification ended, and is None if there was none.
    """

    snapshot_id: str
    name: str
    created_s: float
    kernel_id: str
    notebook: str | None
    nbytes: int
    variables: int
    labels: dict[str, Any] = field(default_factory=dict)
    verified: bool | None = None


def read_info(snapshot_id: str, document: Mapping[str, Any]) -> SnapshotInfo:
    """Return the line for a signed document; raises what a malformed one raises."""
    manifest = document["manifest"]
    labels = manifest.get("labels", {})
    return SnapshotInfo(
        snapshot_id=snapshot_id,
        name=str(manifest["name"]),
        created_s=float(manifest["created_s"]),
        kernel_id=str(manifest["kernel_id"]),
        notebook=manifest["notebook"],
        nbytes=sum(_nbytes(chunk) for blob in manifest["blobs"] for chunk in blob),
        variables=len(manifest["variables"]),
        labels=dict(labels) if isinstance(labels, dict) else {},
    )


def chunk_names(document: Mapping[str, Any]) -> set[str]:
    """Return the chunks of packs that a signed document names.

    Raises what a malformed document, or one of a later format, raises.
    """
    manifest = document["manifest"]
    if manifest["format"] < 2:  # its chunks are files of their own, not in packs
        return set()
    if manifest["format"] > 2:
        raise ValueError(f"a manifest of format {manifest['format']}")
    return {str(name) for blob in manifest["blobs"] for name, _ in blob}


def _nbytes(chunk: Any) -> int:
    return int(chunk["nbytes"] if isinstance(chunk, dict) else chunk[1])
