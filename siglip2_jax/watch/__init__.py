"""A training run as its workdir shows it: read, judged by rules, drawn in a terminal or a page."""
