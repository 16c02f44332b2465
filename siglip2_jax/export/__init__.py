"""Models as files that other programs run: no code of this package is needed to use them."""
