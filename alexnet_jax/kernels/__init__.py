"""Fast forms of the layers, by platform."""
