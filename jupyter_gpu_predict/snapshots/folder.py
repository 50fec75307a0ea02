"""A folder of snapshots: manifests and the content-named chunks that they share.

::

    FOLDER/manifests/ID.json     signed manifest, written last
    FOLDER/chunks/HASH           bytes named by their own hash
    FOLDER/lock                  shared by writers, exclusive for the removal of garbage
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInputError, NotFoundError, SnapshotError, StorageFullError

CHUNK_BYTES = 16 << 20
"""Longest chunk; a file and an fsync each, so that few large ones are cheaper than many small."""

MAX_NAME_LENGTH = 128

_ID = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{12}\Z")
_HASH = re.compile(r"[0-9a-f]{64}\Z")


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


def chunk_hash(data: bytes | bytearray | memoryview) -> str:
    """Return the name of a chunk with these bytes: BLAKE2b, 32 bytes, in hex."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A line of the catalogue; read without checking the signature, so only good for showing."""

    snapshot_id: str
    name: str
    created_s: float
    kernel_id: str
    notebook: str | None
    nbytes: int
    variables: int


class SnapshotFolder:
    """Reads and writes snapshots under one path; safe with several processes at once.

    Raises
    ------
    StorageFullError
        From writing methods, if there is no room; what was there before is untouched.
    SnapshotError
        If the folder cannot be read or written for another reason.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.manifests = self.path / "manifests"
        self.chunks = self.path / "chunks"
        for folder in (self.path, self.manifests, self.chunks):
            with _named(folder, 0):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def list(self) -> list[SnapshotInfo]:
        """Return the snapshots, oldest first; files that are no manifests are left out."""
        found = []
        for file in self.manifests.glob("*.json"):
            if _ID.match(file.stem):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                    found.append(_info(file.stem, json.loads(file.read_bytes())["manifest"]))
        return sorted(found, key=lambda info: (info.created_s, info.snapshot_id))

    def find(self, name_or_id: str) -> str:
        """Return the id of a snapshot given by its id, or of the latest one of that name.

        Raises
        ------
        NotFoundError
            If there is none.
        """
        validate_name(name_or_id)
        if _ID.match(name_or_id) and (self.manifests / f"{name_or_id}.json").exists():
            return name_or_id
        for info in reversed(self.list()):
            if info.name == name_or_id:
                return info.snapshot_id
        raise NotFoundError(f"there is no snapshot {name_or_id!r}; `%gpu snapshots` lists them")

    def read(self, snapshot_id: str) -> dict[str, Any]:
        """Return the signed document of a snapshot, not yet verified.

        Raises
        ------
        NotFoundError
            If there is no such snapshot.
        SnapshotError
            If the file is not a document.
        """
        file = self._manifest(snapshot_id)
        try:
            document = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"there is no snapshot {snapshot_id!r}") from None
        except ValueError as error:
            raise SnapshotError(f"{file} is not a manifest ({error}); delete it") from error
        if not isinstance(document, dict):
            raise SnapshotError(f"{file} is not a manifest; delete it")
        return document

    def read_chunk(self, name: str, into: memoryview) -> int:
        """Read chunk `name` into memory and return how many bytes it has, at most one too many."""
        if not _HASH.match(name):
            raise SnapshotError(
                f"chunk name {name!r} is malformed; the manifest is not one of ours"
            )
        fd = os.open(self.chunks / name, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            done = 0
            while done < len(into):
                count = os.readv(fd, [into[done:]])
                if count == 0:
                    break
                done += count
            return done if size <= len(into) else size
        finally:
            os.close(fd)

    def delete(self, snapshot_id: str) -> None:
        """Remove a snapshot and the chunks that no other one names."""
        file = self._manifest(snapshot_id)
        try:
            file.unlink()
        except FileNotFoundError:
            raise NotFoundError(f"there is no snapshot {snapshot_id!r}") from None
        _sync_folder(self.manifests)
        self.collect_garbage()

    def collect_garbage(self) -> int:
        """Remove chunks no manifest names and temporary files, and return the bytes freed.

        Returns 0 without waiting while another process writes to the folder. A manifest that
        cannot be read keeps all chunks.
        """
        freed = 0
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            if not held:
                return 0
            named: set[str] = set()
            for file in self.manifests.iterdir():
                if file.suffix == ".json":
                    try:
                        blobs = json.loads(file.read_bytes())["manifest"]["blobs"]
                        named.update(chunk["hash"] for blob in blobs for chunk in blob)
                    except (OSError, ValueError, KeyError, TypeError):
                        return 0
            stale = [f for f in self.manifests.iterdir() if f.name.startswith(".")]
            stale += [f for f in self.chunks.iterdir() if f.name not in named]
            for file in stale:
                with contextlib.suppress(FileNotFoundError):
                    size = file.stat().st_size
                    file.unlink()
                    freed += size
        return freed

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """Open a writer; if the block fails, nothing of it can be seen and garbage is removed."""
        done = False
        try:
            with self._locked(fcntl.LOCK_SH):
                yield Writer(self)
                done = True
        finally:
            if not done:
                with contextlib.suppress(SnapshotError, OSError):
                    self.collect_garbage()

    def _manifest(self, snapshot_id: str) -> Path:
        validate_name(snapshot_id)
        if not _ID.match(snapshot_id):
            raise NotFoundError(f"there is no snapshot {snapshot_id!r}")
        return self.manifests / f"{snapshot_id}.json"

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        with _named(self.path, 0):
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, how)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(fd)


class Writer:
    """Writes the chunks of one snapshot and then its manifest."""

    def __init__(self, folder: SnapshotFolder) -> None:
        self._folder = folder
        self.bytes_written = 0

    def blob(self, data: memoryview) -> list[dict[str, Any]]:
        """Write `data` in chunks, leaving out those already there, and return their names."""
        cuts = range(0, len(data), CHUNK_BYTES)
        return [self._chunk(data[start : start + CHUNK_BYTES]) for start in cuts]

    def _chunk(self, data: memoryview) -> dict[str, Any]:
        name = chunk_hash(data)
        file = self._folder.chunks / name
        try:
            known = file.stat().st_size == len(data)
        except FileNotFoundError:
            known = False
        if not known:
            self._write(file, data)
        return {"hash": name, "nbytes": len(data)}

    def manifest(self, snapshot_id: str, document: Mapping[str, Any]) -> None:
        """Write the signed manifest; from then on the snapshot exists."""
        _sync_folder(self._folder.chunks)
        text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
        self._write(self._folder.manifests / f"{snapshot_id}.json", memoryview(text))
        _sync_folder(self._folder.manifests)

    def _write(self, file: Path, data: memoryview) -> None:
        temporary = file.with_name(f".{secrets.token_hex(8)}")
        try:
            with _named(file, len(data)):
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    done = 0
                    while done < len(data):
                        done += os.write(fd, data[done:])
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self.bytes_written += len(data)


@contextlib.contextmanager
def _named(path: Path, nbytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"no room for {nbytes} bytes at {path} ({error.strerror}); delete snapshots or "
                "choose another folder. Earlier snapshots are whole"
            ) from error
        raise SnapshotError(f"{path} cannot be written: {error}") from error


def _sync_folder(folder: Path) -> None:
    with _named(folder, 0):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _info(snapshot_id: str, manifest: Mapping[str, Any]) -> SnapshotInfo:
    return SnapshotInfo(
        snapshot_id=snapshot_id,
        name=str(manifest["name"]),
        created_s=float(manifest["created_s"]),
        kernel_id=str(manifest["kernel_id"]),
        notebook=manifest["notebook"],
        nbytes=sum(chunk["nbytes"] for blob in manifest["blobs"] for chunk in blob),
        variables=len(manifest["variables"]),
    )
