"""What happened, as Jupyter events, so that front ends need not poll."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SCHEMA_ID = "https://events.jupyter.org/jupyter_gpu_predict/gpu_event/v1"
_SCHEMA = Path(__file__).parent / "event_schemas" / "gpu_event.v1.yaml"


class Events:
    """Emits through the server's own event logger."""

    def __init__(self, event_logger: Any) -> None:
        self._logger = event_logger
        if SCHEMA_ID not in event_logger.schemas:
            event_logger.register_event_schema(_SCHEMA)

    def emit(self, kind: str, data: dict[str, Any]) -> None:
        """Emit one event."""
        self._logger.emit(schema_id=SCHEMA_ID, data={"kind": kind, **data})
