"""Offline tools that write training data; training never imports them."""
