"""The class of the session of small objects."""


class Rec:
    """One of many small objects that refer to each other."""

    def __init__(self, i, parent):
        self.i = i
        self.name = f"rec-{i}"
        self.xy = (i * 0.5, i * 0.25)
        self.tags = [i % 7]
        self.parent = parent
