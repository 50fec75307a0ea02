"""Health signals into a GPU's risk."""
