"""Replay of notebook workloads on a virtual clock, under the product's policy and others."""
