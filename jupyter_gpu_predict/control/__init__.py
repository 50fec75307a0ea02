"""Observe, decide, act: one loop around the pure core."""
