"""The paper's claims, the experiments that test them, and their results."""
