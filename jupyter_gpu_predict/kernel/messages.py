"""The messages of the kernel link, both ways.

Server to kernel they are requests on the control channel, kernel to server custom messages on
iopub. An unknown field is ignored; an unknown version is refused by name. Commands that concern a
lease carry its epoch, and the kernel refuses an older one than it has seen.
"""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from ..errors import KernelLinkError

VERSION = 1

TOPIC = b"gpu."
"""Prefix of the iopub topic of our messages, so that subscribers can take or leave them unread."""

M = TypeVar("M", bound="Message")


@dataclass(frozen=True)
class Message:
    """Base of all messages; `msg_type` is the Jupyter message type."""

    msg_type: ClassVar[str] = ""

    def content(self) -> dict[str, Any]:
        """Return the message's content as it goes over the wire."""
        return {"version": VERSION, **asdict(self)}


def decode(cls: type[M], content: dict[str, Any]) -> M:
    """Return `content` as a message of class `cls`.

    Raises
    ------
    KernelLinkError
        If the version is unknown or a required field is missing.
    """
    version = content.get("version")
    if version != VERSION:
        raise KernelLinkError(
            f"{cls.msg_type}: message version {version!r} is not known here (this side speaks "
            f"{VERSION}); restart the kernel so that both sides are of one release"
        )
    known = {}
    for f in fields(cls):
        if f.name in content:
            known[f.name] = content[f.name]
        elif f.default is MISSING and f.default_factory is MISSING:
            raise KernelLinkError(f"{cls.msg_type}: field {f.name!r} is missing")
    return cls(**known)


# --------------------------------------------------------------------------- server -> kernel


@dataclass(frozen=True)
class DescribeRequest(Message):
    """Ask for the kernel's state; always answered, also while a cell runs.

    `server_pid` is the server the kernel belongs to from now on; with `modules` the answer names
    the modules that are loaded, in the order in which they were.
    """

    msg_type: ClassVar[str] = "gpu_describe_request"
    server_pid: int = 0
    modules: bool = False


@dataclass(frozen=True)
class BindRequest(Message):
    """Tell the kernel its lease, answer a claim, bring suspended state back.

    `bytes` is the lease, `cap_bytes` what the allocator may take at most (not for simulated GPUs),
    `peaks` the expected peak bytes by cell digest. `checkpointed` says that the driver is about to
    take the kernel's memory, so that every cell has to claim first. With `warm` the device's
    context is started between cells.
    """

    msg_type: ClassVar[str] = "gpu_bind_request"
    epoch: int
    gpu_uuid: str
    bytes: int
    cap_bytes: int | None = None
    claim_id: str | None = None
    restore: bool = False
    deadline_s: float = 60.0
    peaks: dict[str, int] = field(default_factory=dict)
    checkpointed: bool = False
    warm: bool = False


@dataclass(frozen=True)
class CapRequest(Message):
    """Change what the kernel's allocator may take at most; answered also while a cell runs.

    The answer has ``reserved_bytes``, what the allocator has now.
    """

    msg_type: ClassVar[str] = "gpu_cap_request"
    cap_bytes: int


@dataclass(frozen=True)
class ReclaimRequest(Message):
    """Take the kernel's device memory back in place.

    With `wait` the kernel does it after the running cell, otherwise it refuses while busy.
    """

    msg_type: ClassVar[str] = "gpu_reclaim_request"
    epoch: int
    wait: bool = False
    deadline_s: float = 30.0


@dataclass(frozen=True)
class QueueRequest(Message):
    """Tell a waiting claim its place in the queue."""

    msg_type: ClassVar[str] = "gpu_queue_request"
    claim_id: str
    position: int
    expected_wait_s: float | None
    reason: str


@dataclass(frozen=True)
class RefuseRequest(Message):
    """End a claim that will not be granted."""

    msg_type: ClassVar[str] = "gpu_refuse_request"
    claim_id: str
    reason: str


@dataclass(frozen=True)
class SnapshotRequest(Message):
    """Save the kernel's state between cells.

    With `move` the state is meant for another process at once, and anything that cannot go along
    is refused by name. With `background` the answer comes when the state is caught, and the rest
    is told by `ProgressMessage` under `work_id`. `folder` is a path or the URL of a store, `cause`
    why the snapshot is taken.
    """

    msg_type: ClassVar[str] = "gpu_snapshot_request"
    name: str
    folder: str
    key_path: str
    move: bool = False
    wait: bool = True
    hold: bool = False
    deadline_s: float = 120.0
    notebook: str | None = None
    background: bool = False
    work_id: str = ""
    cause: str = "asked"


@dataclass(frozen=True)
class RestoreRequest(Message):
    """Load a snapshot into the kernel; with `move` it must be the whole state, or it is refused.

    `only` names the variables to load, all of them if it names none; with `recompute` what is not
    in the snapshot is made again by running its cells.
    """

    msg_type: ClassVar[str] = "gpu_restore_request"
    snapshot_id: str
    folder: str
    key_path: str
    move: bool = False
    deadline_s: float = 120.0
    only: tuple[str, ...] = ()
    recompute: bool = False
    work_id: str = ""


NOT_BEGUN = "not begun"
"""State of work that was cancelled before it began, and will not begin any more."""


@dataclass(frozen=True)
class WorkRequest(Message):
    """Ask how far a save or restore has come; with `cancel`, ask it to stop as well.

    The answer has the fields of a `ProgressMessage`.
    """

    msg_type: ClassVar[str] = "gpu_work_request"
    work_id: str
    cancel: bool = False


@dataclass(frozen=True)
class SettingsRequest(Message):
    """Tell the kernel settings of the server that it acts on by itself."""

    msg_type: ClassVar[str] = "gpu_settings_request"
    long_cell_s: float


@dataclass(frozen=True)
class WarmRequest(Message):
    """Import modules ahead of a restore, so that the pause is short."""

    msg_type: ClassVar[str] = "gpu_warm_request"
    modules: tuple[str, ...] = ()
    deadline_s: float = 60.0


@dataclass(frozen=True)
class ReleaseHoldRequest(Message):
    """Let a kernel that was held for a move go on."""

    msg_type: ClassVar[str] = "gpu_unhold_request"


@dataclass(frozen=True)
class AnswerRequest(Message):
    """The server's answer to a call of a magic."""

    msg_type: ClassVar[str] = "gpu_answer_request"
    call_id: str
    ok: bool
    result: Any = None
    error: str | None = None


REQUESTS: tuple[type[Message], ...] = (
    DescribeRequest,
    BindRequest,
    CapRequest,
    ReclaimRequest,
    QueueRequest,
    RefuseRequest,
    SnapshotRequest,
    RestoreRequest,
    WorkRequest,
    SettingsRequest,
    WarmRequest,
    ReleaseHoldRequest,
    AnswerRequest,
)

# --------------------------------------------------------------------------- kernel -> server


@dataclass(frozen=True)
class CellRunMessage(Message):
    """A finished cell run; fields as in `core.model.CellRun`."""

    msg_type: ClassVar[str] = "gpu_cell_run"
    cell_id: str | None
    digest: str
    start_s: float
    end_s: float
    peak_bytes: int
    end_bytes: int
    peak_source: str
    host_peak_bytes: int
    busy_s: float
    outcome: str


@dataclass(frozen=True)
class DemandMessage(Message):
    """What the kernel holds now; sent when it changed, at most once a second."""

    msg_type: ClassVar[str] = "gpu_demand"
    used_bytes: int
    suspended_bytes: int
    keep_reason: str | None = None


@dataclass(frozen=True)
class ClaimMessage(Message):
    """A cell is about to need the GPU and waits; repeated until the server answers.

    One of origin ``"growth"`` is of a cell that runs, and is sent once.
    """

    msg_type: ClassVar[str] = "gpu_claim"
    claim_id: str
    bytes: int
    deadline_s: float
    made_s: float
    priority: int = 0
    affinity: str | None = None
    critical: bool = False
    origin: str = "cell"


@dataclass(frozen=True)
class ClaimEndMessage(Message):
    """A claim that the kernel gave up (interrupt, deadline); nothing waits for it any more."""

    msg_type: ClassVar[str] = "gpu_claim_end"
    claim_id: str
    reason: str


@dataclass(frozen=True)
class StateMessage(Message):
    """Something about the kernel changed: busy or idle, suspended or restored.

    `running_digest` is the digest of the running cell.
    """

    msg_type: ClassVar[str] = "gpu_state"
    event: str
    busy: bool
    used_bytes: int
    suspended_bytes: int
    epoch: int
    seconds: float = 0.0
    bytes: int = 0
    running_digest: str | None = None
    pid: int = 0


@dataclass(frozen=True)
class ProgressMessage(Message):
    """How far a save or restore has come, at most four times a second.

    `state` is ``running``, ``done``, ``failed`` or ``cancelled``; the last three come once.
    """

    msg_type: ClassVar[str] = "gpu_progress"
    work_id: str
    kind: str
    state: str
    done_bytes: int
    total_bytes: int
    cause: str = ""
    result: Any = None
    error: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class CallMessage(Message):
    """A magic asks the server something."""

    msg_type: ClassVar[str] = "gpu_call"
    call_id: str
    method: str
    params: dict[str, Any]


NOTICES: tuple[type[Message], ...] = (
    CellRunMessage,
    DemandMessage,
    ClaimMessage,
    ClaimEndMessage,
    StateMessage,
    ProgressMessage,
    CallMessage,
)

UNTRACKED = tuple(
    name
    for cls in (*REQUESTS, *NOTICES)
    for name in (cls.msg_type, cls.msg_type.replace("_request", "_reply"))
)
"""Message types that are not a user's activity."""
