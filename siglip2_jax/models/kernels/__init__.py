"""Attention, LayerNorm and linear layers with fast paths for each platform."""
