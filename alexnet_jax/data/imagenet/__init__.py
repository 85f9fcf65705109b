"""Datasets of 256 x 256 images from archives and folders."""
