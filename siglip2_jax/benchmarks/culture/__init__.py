"""Cultural diversity and fairness (tables 8 and 9 of the paper)."""
