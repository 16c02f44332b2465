"""Search: images of a database by words, by images, and by each other."""

from siglip2_jax.search.hits import Hit, Results
from siglip2_jax.search.index import Index

__all__ = ["Hit", "Index", "Results"]
