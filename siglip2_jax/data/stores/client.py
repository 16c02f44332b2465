"""Requests to object stores: tried again with growing pauses where that may help, and counted."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.patience import PATIENCE

T = TypeVar("T")

CHANGED = "has changed since it was indexed; run `siglip2 data index` on its files again"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_SECONDS_TO_ANSWER = 3.0
_AWS_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
_STATUS = re.compile(r"status code: (\d{3})")
_OF_CREDENTIALS = re.compile(r"token request|169\.254\.\d|metadata\.google|oauth2")
_CREDENTIALS = {
    "gs": "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or set "
    "GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure export-credentials "
    "--format env` prints them), or AWS_SKIP_SIGNATURE=true for a public bucket",
}


@dataclass(frozen=True)
class Counts:
    """Requests to stores.

    Attributes:
      requests: how many, those that failed included.
      bytes: how many were received.
      retries: requests that were made again.
      seconds: time that threads waited for answers and between attempts, over all threads.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(mine + its for mine, its in pairs))

    def __sub__(self, other: Counts) -> Counts:
        return self + Counts(*(-number for number in dataclasses.astuple(other)))


_lock = threading.Lock()
_total = _taken = Counts()


def counts() -> Counts:
    """The requests of this process so far."""
    return _total


def take() -> Counts:
    """The requests of this process since this was last called."""
    global _taken
    with _lock:
        new, _taken = _total - _taken, _total
    return new


def count(requests: int = 0, size: int = 0, retries: int = 0, seconds: float = 0.0) -> None:
    """Adds to the counts of this process."""
    global _total
    with _lock:
        _total += Counts(requests, size, retries, seconds)


class Client:
    """Client of the stores; picklable, used from any thread.

    Attributes:
      patience: seconds for which a request is tried again before it is a SourceError.
      stall: seconds without a byte after which a request has failed.
    """

    def __init__(self, patience: float = PATIENCE, stall: float = 30.0) -> None:
        self.patience, self.stall = patience, stall
        self._buckets: dict[str, Any] = {}  # clients by scheme and bucket
        self._answered: set[str] = set()  # schemes whose credentials were good once

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buckets": {}, "_answered": set()}

    def request(self, path: str, ask: Callable[[Any, str], T]) -> T:
        """Asks a store until it answers.

        Args:
          path: the object, `gs://` or `s3://`.
          ask: takes obstore's client of the bucket and the object's key.

        Raises:
          SourceError: the object is not there, may not be read, or the store does not answer.
          ValueError: the extra `remote` is not installed.
        """
        check_client()
        scheme, _, rest = path.partition("://")
        bucket, _, key = rest.partition("/")
        begin = time.monotonic()
        for attempt in itertools.count():
            start = time.monotonic()
            try:
                answer = ask(self._bucket(scheme, bucket), key)
                self._answered.add(scheme)
                return answer
            except SourceError:
                raise
            except Exception as error:  # the client's kinds do not tell what may pass
                reason = _reason(error)
                if sentence := self._verdict(error, reason, scheme):
                    raise SourceError(f"{path} {sentence}") from error
                pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.5)
                if (waited := time.monotonic() - begin) + pause > self.patience:
                    raise SourceError(
                        f"{path} cannot be read: tried {attempt + 1} times in {waited:.0f} s "
                        f"({reason}); run the same command again once the store answers"
                    ) from error
            finally:
                count(requests=1, retries=int(attempt > 0), seconds=time.monotonic() - start)
            time.sleep(pause)
            count(seconds=pause)
        raise AssertionError("endless")

    def _verdict(self, error: Exception, reason: str, scheme: str) -> str | None:
        """The rest of a sentence on an error that stays; None for what may pass."""
        status = int(match[1]) if (match := _STATUS.search(reason)) else None
        passes = status is None or status >= 500 or status in (408, 429)
        if _OF_CREDENTIALS.search(reason):  # what the client asks for by itself
            if (passes and status) or scheme in self._answered:
                return None
            return f"cannot be read without credentials ({reason}); {_CREDENTIALS[scheme]}"
        if status == 416:  # it has become shorter than what is asked for
            return CHANGED
        if isinstance(error, FileNotFoundError):
            return "is not in the store: there is no such object or bucket"
        if status in (401, 403):
            return f"may not be read with these credentials ({reason}); {_CREDENTIALS[scheme]}"
        if "redirect" in reason:
            return f"is in another region ({reason}); set AWS_REGION to that of the bucket"
        return None if passes else f"cannot be read ({reason})"

    def _bucket(self, scheme: str, bucket: str) -> Any:
        name = f"{scheme}://{bucket}"
        if name not in self._buckets:
            try:
                self._buckets[name] = _connect(scheme, bucket, self.stall)
            except Exception as error:  # there are none, or a file that is none
                raise SourceError(
                    f"{name} cannot be read without credentials ({_reason(error)}); "
                    f"{_CREDENTIALS[scheme]}"
                ) from error
        return self._buckets[name]


def check_client() -> None:
    """Refuses to read from stores without their client.

    Raises:
      ValueError: the extra `remote` is not installed.
    """
    try:
        import obstore  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "reading from gs:// and s3:// needs obstore; pip install 'siglip2_jax[remote]'"
        ) from error


def _check_instance() -> None:
    """Refuses a bucket of S3 where there are no credentials, which obstore would wait for.

    Raises:
      OSError: neither the environment nor the machine it would ask has any.
    """
    if any(map(os.environ.get, _AWS_CREDENTIALS)):
        return
    address = os.environ.get("AWS_METADATA_ENDPOINT", "http://169.254.169.254")
    parts = urlsplit(address)
    with socket.create_connection((parts.hostname or "", parts.port or 80), _SECONDS_TO_ANSWER):
        pass


def _connect(scheme: str, bucket: str, stall: float) -> Any:
    """The client of a bucket, or of its stand-in at STORAGE_EMULATOR_HOST or AWS_ENDPOINT_URL."""
    from obstore.store import GCSStore, S3Store

    emulator = os.environ.get("STORAGE_EMULATOR_HOST" if scheme == "gs" else "AWS_ENDPOINT_URL", "")
    http: Any = {
        "connect_timeout": "10s",
        "read_timeout": f"{stall}s",
        "timeout": "10m",
        "allow_http": emulator.startswith("http://"),
    }
    retries: Any = {"max_retries": 0}  # they are made and counted here
    if scheme == "s3":
        _check_instance()
        return S3Store(bucket, client_options=http, retry_config=retries)
    if not emulator:
        return GCSStore(bucket, client_options=http, retry_config=retries)
    names = "client_email", "private_key", "private_key_id"
    key = {"gcs_base_url": emulator, "disable_oauth": True, **dict.fromkeys(names, "")}
    return GCSStore(
        bucket, service_account_key=json.dumps(key), client_options=http, retry_config=retries
    )


def _reason(error: Exception) -> str:
    """The first line of a client's error, without the address and the time taken."""
    line = str(error).strip().partition("\n")[0]
    return (line if _OF_CREDENTIALS.search(line) else line.rpartition(" - ")[2])[:300]
