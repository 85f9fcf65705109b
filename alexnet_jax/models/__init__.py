"""The networks, readable against the paper."""
