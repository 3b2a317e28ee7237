"""A package, so that a browser test may have the name of the unit test beside it."""
