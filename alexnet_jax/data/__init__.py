"""From bytes to batches; imports no jax."""
