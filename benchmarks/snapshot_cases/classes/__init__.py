"""Classes of the sessions: run as cells of `__main__`, or imported for methods that need that."""
