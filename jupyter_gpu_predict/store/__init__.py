"""Traces, leases, events and operations in a database."""
