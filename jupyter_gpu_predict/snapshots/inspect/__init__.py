"""Look into a snapshot, verify it and export it."""
