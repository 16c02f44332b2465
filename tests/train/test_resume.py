"""Runs that are killed, told to stop, or moved to other processes, and go on as if nothing was."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from train.processes import (
    LIGHT,
    ONE_LENGTH,
    SMALL,
    assert_same,
    losses,
    metrics,
    saved,
    saved_steps,
    steps_done,
    train,
    training,
)

STEPS = 60
REPLACED = re.compile("replaced by other examples")


def steps(number: int) -> str:
    return f"stages.main.steps={number}"
