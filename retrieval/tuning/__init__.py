"""Choosing submodels by what they retrieve from the user's own index."""
