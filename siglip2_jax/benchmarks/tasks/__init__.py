"""The tasks of `siglip2 eval`."""
