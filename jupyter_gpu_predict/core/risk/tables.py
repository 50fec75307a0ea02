"""What NVIDIA's signals mean for the life of a GPU; every table of the risk rules is here.

Sources: NVIDIA, "XID Errors" (catalogue and recommended actions); NVIDIA, "GPU Memory Error
Management" (row remapping, containment, recovery actions); ``nvml.h`` for names and numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from ..model import RiskLevel

HARD_XIDS = MappingProxyType(
    {
        48: "a double-bit ECC error",
        62: "an internal micro-controller halt; the GPU needs a reset",
        64: "a failed row remap or page retirement; the GPU needs a reset",
        79: "the GPU fell off the bus",
        95: "an uncontained ECC error; the GPU needs a reset",
        119: "a time-out of the GPU's system processor; the GPU needs a reset",
        120: "an error of the GPU's system processor; the GPU needs a reset",
        140: "an unrecovered ECC error; the GPU needs a reset",
    }
)
"""XIDs after which the GPU itself needs a reset or a replacement."""

SOFT_XIDS = MappingProxyType(
    {94: "a contained ECC error; the kernel it hit has to be restarted, the GPU goes on"}
)
"""XIDs that are hardware's but leave the GPU usable."""

IGNORED_XIDS = frozenset({13, 31, 43, 45, 63, 68, 109})
"""XIDs that say nothing about the GPU: the application's own faults (13, 31, 43, 45, 68, 109) and
the record of a remapped row (63), which is the repair and not the damage."""

RECOVERY_ACTIONS = MappingProxyType(
    {
        "none": RiskLevel.NONE,
        "gpu_reset": RiskLevel.CRITICAL,
        "node_reboot": RiskLevel.CRITICAL,
        "drain_p2p": RiskLevel.WARNING,
        "drain_and_reset": RiskLevel.CRITICAL,
        "recover_imex_domain": RiskLevel.WARNING,
        "bus_reset": RiskLevel.CRITICAL,
        "system_reboot": RiskLevel.CRITICAL,
    }
)
"""Level of each recovery action a driver can ask for; the position is its number in ``nvml.h``
(``nvmlDeviceGpuRecoveryAction_t``)."""


@dataclass(frozen=True, slots=True)
class RiskRules:
    """Thresholds of the risk rules.

    Attributes
    ----------
    xid_age_s
        Seconds after which an XID counts no more. One day: a GPU can be reset only while no process
        holds it, this server included, so an XID that matters is older than the reset only after
        the server has started anew.
    slow_query_s
        A health query that takes this long is slow. A whole query takes milliseconds on a sound
        GPU; slow calls precede the loss of the bus.
    pcie_replays
        Growth of the PCIe replay counter from one reading to the next that counts; single replays
        are the link's normal repair.
    horizon_s
        Horizon that the assessed risk speaks about, the longest of the forecasts' horizons.
    """

    xid_age_s: float = 86_400.0
    slow_query_s: float = 1.0
    pcie_replays: int = 10
    horizon_s: float = 300.0
