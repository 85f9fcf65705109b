"""Datasets that TFDS does not have; importing one registers it with TFDS."""
