"""Traces, leases, kernels, operations and events in a database.

`trace_store.Store` is the store, `records.KernelRecord` what it keeps of a kernel, and
`doctor.check_store` says whether a store works. Nothing is imported here, so that the records can
be had without loading SQLAlchemy.
"""
