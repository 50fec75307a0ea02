"""The server extension: configuration, start and stop."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import KernelProvisionerFactory
from jupyter_core.paths import jupyter_data_dir
from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Enum, Float, Integer, Unicode

from ..control.forecasting import ForecastWorker
from ..control.loop import ControlLoop
from ..control.operations import Operation, Operations
from ..control.ports import DeviceBackend
from ..core.model import PolicySettings
from ..core.sizes import parse_bytes
from ..devices.choose import choose_backend
from ..devices.cuda_checkpoint_proof import ProofFile
from ..kernel.messages import UNTRACKED
from ..kernel.provisioner import PROVISIONER_NAME, SETTINGS_KEY
from ..snapshots.stores import SnapshotStore, open_store
from ..store.trace_store import Store
from ..training.registry import ModelRegistry
from .adoption import Adoption
from .api import Api
from .at_work import AtWork
from .checkpoints import DriverCheckpoints
from .connection import holding_class
from .documents import Documents
from .events import Events
from .fleet import Fleet
from .handlers import routes
from .metrics import Gauges
from .moving import Mover
from .paths import Paths
from .snapshots import Snapshots

_DEFAULTS = PolicySettings()


class GpuPredict(ExtensionApp):  # type: ignore[misc]
    """Forecasts, binds, reclaims and migrates the GPUs of this server's kernels."""

    name = "jupyter_gpu_predict"
    extension_url = "/jupyter-gpu-predict"
    load_other_extensions = True

    device_backend = Enum(
        ["auto", "nvml", "simulated"],
        "auto",
        config=True,
        help="Where GPUs come from; `auto`: NVML, else simulated GPUs, said aloud.",
    )
    torch_device = Unicode(
        "cuda",
        config=True,
        help="Type of torch device that the GPUs which NVML lists are in kernels.",
    )
    simulated_gpus = Integer(2, min=1, max=64, config=True, help="Number of simulated GPUs.")
    simulated_memory = Unicode(
        "8GiB", config=True, help="Memory of each simulated GPU, with its unit."
    )
    data_dir = Unicode(
        "",
        config=True,
        help="Folder of database, snapshots and their key; empty: in Jupyter's data folder.",
    )
    snapshot_store = Unicode(
        "",
        config=True,
        help="Where snapshots are kept: a folder, or a URL as s3://BUCKET/PATH or "
        "redis://HOST:PORT/0; empty: in `data_dir`. Kernels write there by themselves, so what "
        "reads a URL (s3fs, redis) must be in their environments too.",
    )
    verify_snapshots = Bool(
        True,
        config=True,
        help="Load each automatic snapshot in a process of its own, to see that it can be.",
    )
    observe_cells = Bool(
        True,
        config=True,
        help="Record what each cell reads, changes and does outside the kernel, without which "
        "nothing can be recomputed. Python's audit hook, which this takes, makes `id()` about five "
        "times and `copy.deepcopy` twice as slow.",
    )
    recompute = Bool(
        False,
        config=True,
        help="Let every restore run cells again to make what could not be saved, as "
        "`%gpu restore NAME --recompute` does; only cells without observed side effects. And let "
        "`%gpu snapshot` leave out what such cells were seen to make alike, twice at least, in a "
        "tenth of the time that storing it takes.",
    )
    database_url = Unicode(
        "", config=True, help="SQLAlchemy URL of the database; empty: SQLite in `data_dir`."
    )
    retention_days = Float(30.0, min=0.0, config=True, help="How long traces and events are kept.")
    claim_deadline_s = Float(
        300.0, min=0.0, config=True, help="How long a cell waits for GPU memory, in seconds."
    )
    orphan_timeout_s = Float(
        3600.0,
        min=0.0,
        config=True,
        help="How long an idle kernel outlives a killed server before it ends, in seconds.",
    )
    forecast_interval_s = Float(
        10.0, min=1.0, config=True, help="How often each kernel's forecast is made, in seconds."
    )
    grace_period_s = Float(
        _DEFAULTS.grace_period_s,
        min=0.0,
        config=True,
        help="How long an idle binding that somebody else needs is left alone, in seconds.",
    )
    reservation_s = Float(
        _DEFAULTS.reservation_s,
        min=0.0,
        config=True,
        help="How long a reservation that nobody uses is kept, in seconds.",
    )
    prebind = Bool(_DEFAULTS.prebind, config=True, help="Bind ahead of use.")
    prebind_horizon_s = Float(
        _DEFAULTS.prebind_horizon_s, min=0.0, config=True, help="How far ahead, in seconds."
    )
    prebind_threshold = Float(
        _DEFAULTS.prebind_threshold,
        min=0.0,
        max=1.0,
        config=True,
        help="P(GPU needed within the horizon) from which a kernel is pre-bound.",
    )
    max_duty = Float(
        _DEFAULTS.max_duty,
        min=0.0,
        max=1.0,
        config=True,
        help="Kernels share a GPU where their predicted busy shares sum up to this at most.",
    )
    max_moves = Integer(
        max(1, (os.cpu_count() or 2) // 2),
        min=1,
        config=True,
        help="How many kernels may be on their way off failing GPUs at once.",
    )
    snapshot_interval_s = Float(
        _DEFAULTS.snapshot_interval_s,
        min=0.0,
        config=True,
        help="How often a kernel on a GPU at risk is snapshotted, at most, in seconds.",
    )
    autosave = Bool(
        _DEFAULTS.autosave,
        config=True,
        help="Save kernels that have changed and lie idle, and before long cells. Whether kernels "
        "on a GPU at risk are saved does not hang on this.",
    )
    autosave_idle_s = Float(
        _DEFAULTS.autosave_idle_s,
        min=0.0,
        config=True,
        help="How long a kernel must have been idle after a change to be saved, in seconds; 0: "
        "never.",
    )
    autosave_long_s = Float(
        _DEFAULTS.autosave_long_s,
        min=0.0,
        config=True,
        help="From which expected duration a cell is preceded by a snapshot, in seconds; 0: never.",
    )
    autosave_keep = Integer(
        _DEFAULTS.autosave_keep,
        min=1,
        max=1000,
        config=True,
        help="How many automatic snapshots of one notebook are kept. What a user has named is "
        "never deleted.",
    )
    autosave_bytes = Integer(
        _DEFAULTS.autosave_bytes,
        min=0,
        config=True,
        help="What all automatic snapshots together may hold that no other snapshot holds, in "
        "bytes; only the latest of each running kernel stays beyond it.",
    )
    headroom_bytes = Integer(
        _DEFAULTS.headroom_bytes, min=0, config=True, help="Slack left to an idle kernel, in bytes."
    )
    checkpoint = Enum(
        ["auto", "off"],
        "auto",
        config=True,
        help="Whether the NVIDIA driver may suspend whole kernels; `auto`: as far as "
        "`jupyter gpu doctor --prove` has shown that it can on this machine.",
    )
    checkpoint_lock_s = Float(
        10.0,
        min=0.1,
        config=True,
        help="How long the driver waits for GPU work under way before it suspends a kernel, in "
        "seconds.",
    )
    preempt = Bool(
        _DEFAULTS.preempt,
        config=True,
        help="Suspend a cell in its middle where another kernel waits that has had less of a GPU; "
        "only where `jupyter gpu doctor --prove` has shown that the driver can.",
    )
    preempt_min_s = Float(
        _DEFAULTS.preempt_min_s,
        min=0.0,
        config=True,
        help="How long a running burst is left alone after it was suspended or resumed, in "
        "seconds.",
    )
    preempt_factor = Float(
        _DEFAULTS.preempt_factor,
        min=1.0,
        config=True,
        help="How many times the GPU time of the one that waits a burst must have had.",
    )
    preempt_age_s = Float(
        _DEFAULTS.preempt_age_s,
        min=0.0,
        config=True,
        help="Who has waited this long goes first among its priority, in seconds.",
    )
    consolidate = Bool(
        _DEFAULTS.consolidate,
        config=True,
        help="Keep empty GPUs empty where that costs nobody anything, to save energy.",
    )

    def initialize_handlers(self) -> None:
        """Add the REST handlers."""
        self.handlers.extend(routes())

    def initialize_settings(self) -> None:
        """Put the parts together; nothing runs before the server's event loop does."""
        server = self.serverapp
        mkm = server.kernel_manager
        data = Path(self.data_dir or Path(jupyter_data_dir()) / "gpu-predict").expanduser()
        self.paths = Paths.make(data, Path(server.runtime_dir))
        backend, sentence = choose_backend(
            self.device_backend,
            simulated_count=self.simulated_gpus,
            simulated_memory_bytes=parse_bytes(self.simulated_memory),
            torch_device=self.torch_device,
        )
        self.log.info("GPU prediction: %s", sentence)
        self.store = Store(self.database_url or self.paths.database_url)
        self.store.prune(time.time() - self.retention_days * 86400, 1_000_000)
        self.events = Events(server.event_logger)
        models = ModelRegistry(self.paths.models)
        self.forecasting = ForecastWorker(model_file=models.serving_path)
        self.loop_ = ControlLoop(
            backend=backend,
            store=self.store,
            forecasting=self.forecasting,
            operations=Operations(time.time, self._save_operation, told=self._tell_operation),
            emit=self.events.emit,
            settings=PolicySettings(
                **{f.name: getattr(self, f.name) for f in fields(PolicySettings)}
            ),
            forecast_interval_s=self.forecast_interval_s,
        )
        self.adoption = Adoption(self.store, server)
        self.fleet = Fleet(
            self.loop_,
            self.paths,
            self._open_store(),
            root_dir=server.root_dir,
            claim_deadline_s=self.claim_deadline_s,
            orphan_timeout_s=self.orphan_timeout_s,
            recompute=self.recompute,
            observe_cells=self.observe_cells,
            remember=self.adoption.remember,
            forget=self.store.forget_kernel,
        )
        self.checkpoints = None if backend.simulated else self._driver_checkpoints(backend)
        self.loop_.checkpoints = self.checkpoints
        self.at_work = AtWork(self.loop_, self.fleet.managers)
        self.moves = Mover(
            self.fleet, lambda kernel_id: self.adoption.remember(self.fleet, kernel_id)
        )
        self.snapshots = Snapshots(self.fleet, verify=self.verify_snapshots)
        self.fleet.notices.snapshots = self.snapshots
        self.loop_.moves = self.moves
        self.loop_.saves = self.snapshots
        self.loop_.notebooks = self.documents = Documents(server)
        self.api = Api(self.loop_, self.fleet, self.moves, self.snapshots, sentence)
        self.fleet.calls.api = self.api
        self.gauges = Gauges(self.loop_)
        self._take_default_provisioner()
        mkm.untracked_message_types = [*mkm.untracked_message_types, *UNTRACKED]
        # `self.settings` began as a copy of the server's settings and is written back over them.
        self.settings.update(
            {
                "kernel_websocket_connection_class": holding_class(
                    self.settings["kernel_websocket_connection_class"], self.fleet
                ),
                SETTINGS_KEY: self.fleet,
                "jupyter_gpu_predict_api": self.api,
            }
        )

    def _driver_checkpoints(self, backend: DeviceBackend) -> DriverCheckpoints:
        return DriverCheckpoints(
            self.loop_,
            self.store,
            ProofFile(self.paths.checkpoint_proof),
            lambda: str(getattr(backend, "driver_version", "")),
            lock_timeout_s=self.checkpoint_lock_s,
            enabled=self.checkpoint == "auto",
        )

    def _open_store(self) -> SnapshotStore:
        where = self.snapshot_store or str(self.paths.snapshots)
        return open_store(where if "://" in where else os.path.expanduser(where))

    def _take_default_provisioner(self) -> None:
        """Launch kernels by our provisioner, unless the administrator has chosen another."""
        factory = KernelProvisionerFactory.instance(parent=self.serverapp)
        if factory.default_provisioner_name == "local-provisioner":
            factory.default_provisioner_name = PROVISIONER_NAME
        self.provisioner_active = factory.default_provisioner_name == PROVISIONER_NAME
        if not self.provisioner_active:
            self.log.warning(
                "KernelProvisionerFactory.default_provisioner_name is %r: kernels start without "
                "a GPU bound and without the agent; set it to %r",
                factory.default_provisioner_name,
                PROVISIONER_NAME,
            )

    def _tell_operation(self, operation: Operation) -> None:
        self.events.emit(
            "operation",
            {
                "t_s": time.time(),
                "kernel_id": operation.kernel_id,
                "operation_id": operation.id,
                "operation": operation.kind,
                "state": operation.state,
                "progress": operation.progress,
                "done_bytes": operation.done_bytes,
                "total_bytes": operation.total_bytes,
                "reason": operation.error,
            },
        )

    def _save_operation(self, operation: dict[str, Any]) -> None:
        failed = operation["state"] in {"failed", "cancelled"}
        self.loop_.later(
            lambda: self.store.save_operation(
                operation["id"],
                kernel_id=operation["kernel_id"],
                kind=operation["kind"],
                state=operation["state"],
                progress=operation["progress"],
                made_s=operation["started_s"],
                ended_s=operation["ended_s"],
                result=operation["result"],
                error={"message": operation["error"], "reason": operation["code"]}
                if failed
                else None,
            )
        )

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        """Start the loop, then take over kernels of a server that was killed."""
        await self.loop_.start()
        self.snapshots.start()
        await self.adoption.adopt(self.fleet)
        self.at_work.start()
        await self.loop_.halted.recover()

    async def stop_extension(self) -> None:
        """Stop everything this extension runs; kernels end as Jupyter ends them."""
        if not hasattr(self, "fleet"):
            return
        self.gauges.close()
        await self.at_work.close()
        await self.fleet.close()
        await self.loop_.operations.close()
        await self.snapshots.close()
        await self.loop_.close()
        if self.checkpoints is not None:
            await self.checkpoints.close()
        await self.documents.close()
        await self.forecasting.close()
        self.loop_.backend.close()
        await asyncio.to_thread(self.store.close)
