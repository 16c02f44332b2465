"""Examples in blocks: their order, where they are held, and how hosts and workers share them."""
