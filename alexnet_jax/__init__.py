"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in JAX and Flax, as published and as it ran."""
