"""Where this server keeps things on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..devices.cuda_checkpoint_proof import FILE


@dataclass(frozen=True)
class Paths:
    """Folders and files under Jupyter's data and runtime folders, for the user only."""

    data: Path
    spill: Path

    @classmethod
    def make(cls, data: Path, runtime: Path) -> Paths:
        """Return the paths, with their folders made."""
        paths = cls(data, runtime / "gpu-predict-spill")
        for folder in (paths.data, paths.spill, paths.snapshots):
            folder.mkdir(parents=True, exist_ok=True)
            os.chmod(folder, 0o700)
        return paths

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots."""
        return self.data / "snapshots"

    @property
    def key(self) -> Path:
        """Key that snapshots are signed with."""
        return self.data / "snapshot.key"

    @property
    def models(self) -> Path:
        """Folder of the learned models."""
        return self.data / "models"

    @property
    def checkpoint_proof(self) -> Path:
        """What `jupyter gpu doctor --prove` found out about the driver."""
        return self.data / FILE

    @property
    def database_url(self) -> str:
        """Default database of traces and leases."""
        return f"sqlite:///{self.data / 'state.db'}"


def notebook_path(session_name: str | None, root_dir: str) -> str | None:
    """Return the notebook of a kernel as a path of the contents API.

    Jupyter names the session by the notebook's path on disk.
    """
    if not session_name:
        return None
    path = os.path.relpath(os.path.join(root_dir, session_name), root_dir)
    return session_name if path.startswith("..") else path
