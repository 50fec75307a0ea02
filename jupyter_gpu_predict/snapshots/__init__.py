"""Capture, folder of signed snapshots, restore, verify."""
