"""The sessions that `benchmarks/snapshot.py` saves, and the ways in which it saves them."""
