"""The Jupyter Server extension."""

API = "jupyter-gpu-predict/api/v1"
"""Path of the REST API below the server's base URL."""
