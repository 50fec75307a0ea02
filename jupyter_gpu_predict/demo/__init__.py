"""The main job in a terminal: `jupyter gpu demo`."""
