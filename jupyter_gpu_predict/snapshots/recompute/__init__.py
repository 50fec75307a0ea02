"""Which cells to run again so as to have a variable back, decided from recorded cell runs."""
