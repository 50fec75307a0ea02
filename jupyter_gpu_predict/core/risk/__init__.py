"""Health signals into a GPU's risk."""

from __future__ import annotations

from .rules import Risk, assess
from .tables import RECOVERY_ACTIONS, RiskRules

__all__ = ["RECOVERY_ACTIONS", "Risk", "RiskRules", "assess"]
