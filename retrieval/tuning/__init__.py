"""Choosing submodels by what they retrieve from one's own index."""
