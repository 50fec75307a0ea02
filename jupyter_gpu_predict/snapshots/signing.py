"""The signature that a snapshot must carry before a byte of it is unpickled."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import (
    SnapshotError,
    SnapshotSignatureError,
    SnapshotVersionError,
)

FORMAT = 2
"""Version of the manifest and of the streams; a reader refuses any other."""

KEY_BYTES = 32
_SCHEME = "hmac-sha256:"


def python_version() -> str:
    """Return the version that marshalled code and pickled internals hold for, e.g. ``"3.11"``."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def load_or_create_key(path: str | os.PathLike[str]) -> bytes:
    """Return the signing key kept in the file `path`, creating it on first use.

    Several processes may call this at once: all of them get the same key.

    Raises
    ------
    SnapshotError
        If the file cannot be read or created, is no key, or can be read by other users.
    """
    path = Path(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(KEY_BYTES + 1)
    except OSError as error:
        raise SnapshotError(f"snapshot key {path} cannot be read or created: {error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise SnapshotError(
            f"snapshot key {path} can be read by other users, who could then forge snapshots; "
            f"delete it (older snapshots are then refused) or run: chmod 600 {path}"
        )
    if len(key) != KEY_BYTES:
        raise SnapshotError(f"{path} is no snapshot key ({KEY_BYTES} bytes expected); delete it")
    return key


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(fd, secrets.token_bytes(KEY_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
        # A link never replaces what is there, so that the first of several creators wins.
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)


def sign(manifest: Mapping[str, Any], key: bytes) -> dict[str, Any]:
    """Return the document of a manifest: the manifest and its signature."""
    return {"manifest": dict(manifest), "signature": _SCHEME + _mac(manifest, key)}


def verify(document: Mapping[str, Any], key: bytes, snapshot_id: str) -> dict[str, Any]:
    """Return the manifest in `document` if it was signed with `key` and can be read here.

    Raises
    ------
    SnapshotSignatureError
        If it is unsigned, signed with another key or altered.
    SnapshotVersionError
        If it is of another format or another Python.
    """
    manifest = check_signature(document, key, snapshot_id)
    if manifest.get("format") != FORMAT:
        raise SnapshotVersionError(
            f"snapshot {snapshot_id} has format {manifest.get('format')}, this version reads "
            f"{FORMAT}; open it with the version that wrote it"
        )
    if manifest.get("python") != python_version():
        raise SnapshotVersionError(
            f"snapshot {snapshot_id} was taken with Python {manifest.get('python')}, this kernel "
            f"runs {python_version()}; restore it in a kernel of the same version"
        )
    return manifest


def check_signature(document: Mapping[str, Any], key: bytes, snapshot_id: str) -> dict[str, Any]:
    """Return the manifest in `document` if it was signed with `key`, whatever it holds.

    Raises
    ------
    SnapshotSignatureError
        If it is unsigned, signed with another key or altered.
    """
    manifest, signature = document.get("manifest"), document.get("signature")
    if not isinstance(manifest, dict):
        raise SnapshotSignatureError(f"snapshot {snapshot_id} has no manifest; it was not opened")
    if not isinstance(signature, str) or not signature.startswith(_SCHEME):
        raise SnapshotSignatureError(f"snapshot {snapshot_id} is not signed; it was not opened")
    try:
        good = hmac.compare_digest(signature.encode(), (_SCHEME + _mac(manifest, key)).encode())
    except (ValueError, UnicodeError):
        good = False
    if not good:
        raise SnapshotSignatureError(
            f"snapshot {snapshot_id} was altered or signed with another key; it was not opened. "
            "Take a new snapshot with this server's key"
        )
    if manifest.get("id") != snapshot_id:
        raise SnapshotSignatureError(
            f"snapshot {snapshot_id} holds the manifest of {manifest.get('id')}; it was not opened"
        )
    return manifest


def _mac(manifest: Mapping[str, Any], key: bytes) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
