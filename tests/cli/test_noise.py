"""Reports of libraries on errors that commands tell in a sentence."""

import logging
import sys
from types import SimpleNamespace

from siglip2_jax.cli.noise import LIBRARIES, quiet_libraries


def test_late_answers_to_a_closed_loop_are_hidden(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda x: shown.append(str(x.exc_value)))
    with quiet_libraries():
        for text in ("Event loop is closed", "another"):
            sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
    sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError("Event loop is closed")))
    assert shown == ["another", "Event loop is closed"]


def test_logs_of_errors_that_are_raised_are_hidden(monkeypatch, caplog):
    for library in LIBRARIES:
        monkeypatch.setattr(logging.getLogger(library), "level", logging.NOTSET)
    with quiet_libraries():
        for library in LIBRARIES:
            logging.getLogger(library).error("it was raised")
    assert not caplog.records
