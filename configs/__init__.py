"""Configs: the recipes of the paper and of 2012; installed as alexnet_jax.configs."""
