"""The cases of `benchmarks/forecast.py`, each a module that returns rows."""
