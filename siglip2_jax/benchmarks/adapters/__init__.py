"""Adapters: other models in our evaluators, our model in other benchmarks."""
