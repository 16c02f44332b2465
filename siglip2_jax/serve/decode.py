"""Processes that decode images: what one of them trips over or hangs at harms nobody else."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from siglip2_jax.preprocess.decode import ImageError
from siglip2_jax.preprocess.image import ImagePreprocessor
from siglip2_jax.preprocess.patches import ImagePatches

_START_SECONDS = 120.0


class Decoded(NamedTuple):
    """An image as patches.

    Attributes:
      patches: without padding, and the rows and columns of its grid.
      size: width and height, upright.
    """

    patches: ImagePatches
    size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.patches[1]


class DecoderLost(Exception):
    """A decoder that took too long or ended, and has been replaced."""


class Decoders:
    """Decoding processes, each with a thread of the server that waits for it."""

    def __init__(
        self,
        preprocess: ImagePreprocessor,
        workers: int,
        seconds: float,
        restarted: Callable[[], None] = lambda: None,
    ):
        """Starts nothing yet: each process starts with its first image, or `start`.

        Args:
          preprocess: what they do.
          workers: how many there are.
          seconds: time for an image, after which its decoder is ended.
          restarted: told of each that is replaced.
        """
        self._preprocess, self._seconds, self._restarted = preprocess, seconds, restarted
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers, "siglip2_jax decoder")
        self._local = threading.local()
        self._processes: set[_Process] = set()

    def start(self) -> None:
        """Starts the processes and waits until they work."""
        barrier = threading.Barrier(self._workers)

        def begin() -> None:
            barrier.wait()  # or one thread would take two of these
            self._process().ask(b"", 1, self._seconds)

        for future in [self._threads.submit(begin) for _ in range(self._workers)]:
            future.result()

    async def decode(self, data: bytes, max_num_patches: int) -> Decoded:
        """Decodes an image and cuts it into patches.

        Raises:
          ImageError: it cannot be read.
          DecoderLost: it took too long, or brought the decoder down.
        """
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._threads, self._ask, data, max_num_patches)
        if isinstance(result, str):
            raise ImageError(result)
        return result

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.kill()

    def _process(self) -> _Process:
        process: _Process | None = getattr(self._local, "process", None)
        if process is None:
            process = self._local.process = _Process(self._preprocess)
            self._processes.add(process)
        return process

    def _ask(self, data: bytes, max_num_patches: int) -> Decoded | str:
        process = self._process()
        try:
            return process.ask(data, max_num_patches, self._seconds)
        except (DecoderLost, EOFError, OSError) as error:
            process.kill()
            self._processes.discard(process)
            self._local.process = None
            self._restarted()
            raise DecoderLost from error


class _Process:
    def __init__(self, preprocess: ImagePreprocessor):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, preprocess), name="siglip2_jax decoder", daemon=True
        )
        self._process.start()
        other.close()  # so that its end is noticed
        self._started = False

    def ask(self, data: bytes, max_num_patches: int, seconds: float) -> Decoded | str:
        if not self._started:
            self._receive(_START_SECONDS)
            self._started = True
        self._connection.send((data, max_num_patches))
        return self._receive(seconds)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        with suppress(OSError):
            self._connection.close()

    def _receive(self, seconds: float) -> Decoded | str:
        if not self._connection.poll(seconds):
            raise DecoderLost
        return self._connection.recv()


def _serve(connection: Connection, preprocess: ImagePreprocessor) -> None:
    """Decodes until the server closes the connection or ends.

    Signals that a terminal or a service manager sends to all processes are left to the server.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        connection.send("")  # has started
        while True:
            connection.send(_decode(preprocess, *connection.recv()))


def _decode(preprocess: ImagePreprocessor, data: bytes, max_num_patches: int) -> Decoded | str:
    """The image; or a sentence, since not every error can be pickled."""
    try:
        image = preprocess.open(data, name="image")
        return Decoded(preprocess.to_patches(image, max_num_patches), image.size)
    except ImageError as error:
        return str(error)
    except Exception as error:  # whatever a decoder trips over, memory included
        return f"image: it cannot be decoded ({type(error).__name__})."
