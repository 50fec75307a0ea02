"""One module for each session, with a function `session(scale)`."""

CASES = ("arrays", "objects", "torch_adam", "aliased", "forest", "unpicklable")
