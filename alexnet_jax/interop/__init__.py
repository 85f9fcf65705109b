"""Other programs' weights."""
