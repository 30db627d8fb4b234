"""Planted bugs: small changes that a tired engineer would make, each with the tests that must see it. `make mutants` runs them."""
