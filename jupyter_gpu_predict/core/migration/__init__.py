"""The migration state machine and what a move costs."""
