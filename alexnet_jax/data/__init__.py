"""Datasets: from encoded images to batches of crops. Imports no JAX."""
