"""A trained network and its errors."""
