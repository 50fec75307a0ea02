"""Every error this package raises, in one tree, each with its HTTP status.

::

    GpuPredictError                500
    ├── BadInputError              400
    ├── NotFoundError              404
    ├── ConflictError              409
    │   └── StaleEpochError        409
    ├── UnsatisfiableError         422
    ├── RefusedError               409
    ├── DeviceError                503
    ├── KernelLinkError            503
    │   └── LinkTimeoutError       504
    ├── SnapshotError              500
    │   ├── SnapshotRefusedError   422
    │   │   ├── SnapshotSignatureError   422
    │   │   ├── SnapshotVersionError     422
    │   │   ├── SnapshotDamagedError     422
    │   │   └── SnapshotIncompleteError  422
    │   ├── SnapshotCancelledError 409
    │   ├── StorageFullError       507
    │   ├── StorageAccessError     502
    │   ├── StorageUnavailableError 503
    │   └── TombstoneError         409
    ├── ModelFileError             422
    └── StoreError                 500
"""

from __future__ import annotations


class GpuPredictError(Exception):
    """Root of all errors of this package; its message names the thing, the fault and the remedy."""

    status = 500

    @property
    def reason(self) -> str:
        """A short machine-readable name of the error, e.g. ``"not_found"``."""
        name = type(self).__name__.removesuffix("Error")
        return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class BadInputError(GpuPredictError):
    """Input that is malformed; nothing was changed."""

    status = 400


class NotFoundError(GpuPredictError):
    """A GPU, kernel, snapshot or operation that does not exist."""

    status = 404


class ConflictError(GpuPredictError):
    """The thing is in a state in which this cannot be done, e.g. it is migrating already."""

    status = 409


class StaleEpochError(ConflictError):
    """A command that carries an older epoch than the lease it speaks about."""


class UnsatisfiableError(GpuPredictError):
    """A well-formed wish that no GPU can ever fulfil, e.g. more memory than the largest GPU has."""

    status = 422


class RefusedError(GpuPredictError):
    """An action that was refused because it would lose state; the message names what."""

    status = 409


class DeviceError(GpuPredictError):
    """A GPU, or the library that speaks to it, does not answer."""

    status = 503


class CheckpointRefusedError(RefusedError):
    """A driver checkpoint that was not begun, or was undone wholly; the kernel is as it was.

    Attributes
    ----------
    why
        Short name of the reason, e.g. ``"mig"`` or ``"lock_timeout"``.
    fallback
        The rung of the ladder to try instead, e.g. ``"in_place"``.
    """

    def __init__(self, message: str, why: str = "", fallback: str = "") -> None:
        super().__init__(message)
        self.why = why
        self.fallback = fallback


class CheckpointFailedError(DeviceError):
    """A driver checkpoint or its restore that did not end as asked; the message says how it ended.

    Attributes
    ----------
    why
        Short name of the reason.
    fallback
        The rung of the ladder that is left.
    held
        Whether processes of the kernel may still be locked or without their device memory; the
        kernel's record names them, and another attempt takes up from there.
    """

    def __init__(
        self, message: str, why: str = "", fallback: str = "", *, held: bool = False
    ) -> None:
        super().__init__(message)
        self.why = why
        self.fallback = fallback
        self.held = held


class KernelLinkError(GpuPredictError):
    """A kernel did not answer as agreed, or has no agent."""

    status = 503


class LinkTimeoutError(KernelLinkError):
    """A kernel did not answer before the deadline."""

    status = 504


class SnapshotError(GpuPredictError):
    """A snapshot could not be written or read."""


class SnapshotRefusedError(SnapshotError):
    """A snapshot that is unsigned, foreign, altered or of another Python; it was not unpickled."""

    status = 422


class SnapshotSignatureError(SnapshotRefusedError):
    """A manifest that is unsigned, altered or signed with another key."""


class SnapshotVersionError(SnapshotRefusedError):
    """A snapshot of a later format or of another Python version."""


class SnapshotDamagedError(SnapshotRefusedError):
    """A manifest or chunk whose bytes are not those that were written."""


class SnapshotIncompleteError(SnapshotRefusedError):
    """A snapshot that names a chunk which the store does not have."""


class SnapshotCancelledError(SnapshotError):
    """A save or restore that was cancelled; the store and the namespace are as before."""

    status = 409


class StorageFullError(SnapshotError):
    """The store has no room for a snapshot; the message names the place and the bytes."""

    status = 507


class StorageAccessError(SnapshotError):
    """The store refuses these credentials or this operation."""

    status = 502


class StorageUnavailableError(SnapshotError):
    """The store does not answer, or the connection was lost half way."""

    status = 503


class TombstoneError(SnapshotError):
    """Use of a variable that a snapshot does not hold; the message says what it was."""

    status = 409


class ModelFileError(GpuPredictError):
    """A file of a trained model that cannot be used; the model before it goes on serving."""

    status = 422


class StoreError(GpuPredictError):
    """The database of traces and leases cannot be read or written."""
