"""Trained networks, their predictions and their errors."""
