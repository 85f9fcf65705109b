"""Datasets of square images from archives and folders."""
