"""Losses that a training step minimises: one file an objective, all behind one protocol."""

from siglip2_jax.objectives.base import Buffer, Objective, Teacher, View
from siglip2_jax.objectives.caption import Captioning
from siglip2_jax.objectives.masked import MaskedPrediction
from siglip2_jax.objectives.self_distill import SelfDistill
from siglip2_jax.objectives.sigmoid import Sigmoid, sigmoid_loss
from siglip2_jax.objectives.softmax_distill import SoftmaxDistill

__all__ = [
    "Buffer",
    "Captioning",
    "MaskedPrediction",
    "Objective",
    "SelfDistill",
    "Sigmoid",
    "SoftmaxDistill",
    "Teacher",
    "View",
    "sigmoid_loss",
]
