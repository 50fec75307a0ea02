"""Cell runs into features and demand series."""
