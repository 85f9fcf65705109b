"""What a trained network has learned, and figures of it."""
