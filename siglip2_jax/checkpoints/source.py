"""Sources of checkpoints: local paths, `gs://` paths, Hugging Face repositories."""

from __future__ import annotations

import difflib
import os
import re
import threading
import urllib.error
import urllib.request

from etils import epath

from siglip2_jax.models.config import RELEASES, SIGLIP1_RELEASES

ACCEPTED = (
    "a source is an .npz file, a directory or .safetensors file in Hugging Face layout, a "
    "checkpoint of siglip2_jax, a gs:// path to one of these, or a Hugging Face repository "
    "(owner/name)"
)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# Everything a loader reads, and no pickles or weights of other frameworks.
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "spiece.model"]
PATIENCE = 3.0  # seconds


class SourceError(OSError):
    """Error for a source that does not exist or cannot be reached; the message is one sentence."""


def resolve(source: str | os.PathLike[str]) -> epath.Path:
    """The file or directory that a source names; repositories are downloaded, or taken from cache.

    Args:
      source: a local path, a `gs://` path, or a Hugging Face repository `owner/name`, with
        `@revision` behind it if need be.

    Raises:
      SourceError: there is no such thing, or it cannot be reached.
    """
    text = os.fspath(source)
    if text.startswith("gs://"):
        return _from_bucket(text)
    path = absolute(text)
    if path.exists():
        return path
    if REPOSITORY.fullmatch(text) and not text.endswith((".npz", ".safetensors")):
        return _from_hub(text)
    raise SourceError(f"there is no file or directory {text!r}{_suggestion(text)}; {ACCEPTED}")


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Makes a local path absolute, as Orbax needs it; `gs://` paths are so already."""
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else path.expanduser().absolute()


def check_bucket(text: str) -> None:
    """Makes sure that a store can be asked for a `gs://` path, in seconds.

    Raises:
      SourceError: the extra is not installed, or the store cannot be reached.
    """
    store = os.environ.get("STORAGE_EMULATOR_HOST") or "https://storage.googleapis.com"
    try:
        import gcsfs  # noqa: F401
    except ImportError as error:
        raise SourceError(
            f"{text}: gs:// paths need an extra, pip install 'siglip2_jax[gcs]'"
        ) from error
    if not reachable(store):
        raise SourceError(f"{text}: Google Cloud Storage cannot be reached; is there a network?")


def _from_bucket(text: str) -> epath.Path:
    check_bucket(text)
    path = epath.Path(text)
    try:
        exists = path.exists()
    except Exception as error:  # gcsfs has many kinds, and passes on those of its HTTP client
        raise SourceError(f"{text} cannot be read: {error}") from error
    if not exists:
        raise SourceError(f"there is no {text}{_suggestion(text)}")
    return path


def _from_hub(text: str) -> epath.Path:
    # Slow to import.
    from huggingface_hub import constants, errors, snapshot_download

    repository, _, revision = text.partition("@")
    offline = constants.HF_HUB_OFFLINE or not reachable(constants.ENDPOINT)
    try:
        directory = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=HUB_FILES,
            local_files_only=offline,
        )
    except errors.LocalEntryNotFoundError as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        raise SourceError(
            f"there is no local path {text!r}{_suggestion(text)}; the Hugging Face repository is "
            f"not in the cache, and cannot be fetched from {constants.ENDPOINT}: {reason}"
        ) from error
    except Exception as error:  # the hub has many kinds, and passes on those of its HTTP client
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SourceError(
            f"there is no local path {text!r}, and the Hugging Face repository could not be read "
            f"({reason}){_suggestion(text)}"
        ) from error
    return epath.Path(directory)


def reachable(url: str) -> bool:
    """True where a server answers, with anything, in a few seconds; proxies are honoured.

    The hub's client would retry for half a minute first, and gcsfs for longer.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=PATIENCE).close()
        except urllib.error.HTTPError as error:
            error.close()
        except (OSError, ValueError):
            return
        answered.set()

    # In a thread, because looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()


def _suggestion(text: str) -> str:
    """Suggests the source that the user may have meant: a neighbouring file, or a release."""
    parent = epath.Path(text).expanduser().parent if "://" not in text else None
    names = {}
    if parent and parent.is_dir():
        names |= {path.name: str(path) for path in parent.iterdir()}
    for release in RELEASES + SIGLIP1_RELEASES:
        names |= dict.fromkeys((release.name, release.npz, release.hf), release.hf)
        names |= {f"{release.npz}.npz": release.hf}
    for name in (text, epath.Path(text).name):
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        if close and names[close[0]] != text:
            return f", did you mean {names[close[0]]}?"
    return ""
