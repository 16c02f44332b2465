"""Search: images of a database by words, by images, and by each other."""
