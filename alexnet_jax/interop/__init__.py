"""Weights of other programs: reading and writing their files, and importing and exporting runs."""
