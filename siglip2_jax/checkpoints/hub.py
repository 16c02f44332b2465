"""Uploads of exports to the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NamedTuple

from etils import epath

from siglip2_jax.checkpoints.huggingface import WEIGHTS
from siglip2_jax.checkpoints.huggingface_config import CONFIG, PREPROCESSOR, read_json
from siglip2_jax.checkpoints.model_card import CARD, TAG
from siglip2_jax.checkpoints.read import read
from siglip2_jax.checkpoints.sentence_transformers_config import MODULES, SIMILARITY, TRANSFORMER
from siglip2_jax.checkpoints.source import SourceError, reachable
from siglip2_jax.checkpoints.table import ConversionError
from siglip2_jax.fingerprint import sha256_of

MANIFEST = "export.json"
NEEDED = (CARD, CONFIG, PREPROCESSOR, WEIGHTS)
OPTIONAL = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    MODULES,
    TRANSFORMER,
    SIMILARITY,
)
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Upload(NamedTuple):
    """Result of a push.

    Attributes:
      url: page of the repository, at the revision.
      commit: hash of the commit.
      files: names of what the commit holds.
    """

    url: str
    commit: str
    files: tuple[str, ...]


def exported_files(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the files of an export, which is checked to be whole.

    What else lies in the directory is not among them.

    Args:
      directory: one that `siglip2 convert --to hf` or `siglip2 export` wrote.

    Raises:
      ConversionError: it is no such directory, or a file is missing or damaged.
    """
    path = epath.Path(directory)
    if not path.is_dir():
        raise ConversionError(["there is no such directory"], str(path))
    if (path / MANIFEST).is_file():
        return _in_manifest(path)
    if not all((path / name).is_file() for name in (CARD, CONFIG)) or TAG not in _tags(path):
        problem = "it is no export; write one with `siglip2 convert SOURCE DIR --to hf`"
        raise ConversionError([problem], str(path))
    if missing := [name for name in NEEDED if not (path / name).is_file()]:
        raise ConversionError([f"{name} is missing" for name in missing], str(path))
    for tensor in read(path).params.values():
        tensor.read()
    return (*NEEDED, *(name for name in OPTIONAL if (path / name).is_file()))


def _tags(path: epath.Path) -> list[str]:
    """Tags in the header of a model card."""
    header = re.match(r"---\n(.*?)^---$", (path / CARD).read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(r"^- (\S+)$", header[1], re.MULTILINE) if header else []


def _in_manifest(path: epath.Path) -> tuple[str, ...]:
    """The files that a manifest lists, each with the content that it had then."""
    listed: Any = read_json(path / MANIFEST).get("files")
    try:
        digests = {name: entry["sha256"] for name, entry in listed.items()}
    except (AttributeError, TypeError, KeyError):
        problem = f"{MANIFEST} lists no files with their sha256, as `siglip2 export` writes them"
        raise ConversionError([problem], str(path)) from None
    problems = []
    for name, digest in digests.items():
        if epath.Path(name).name != name or not (path / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(path / name) != digest:
            problems.append(f"{name} is not what was exported")
    if problems:
        raise ConversionError(problems, str(path))
    cards = [CARD] if (path / CARD).is_file() else []
    return tuple(dict.fromkeys([MANIFEST, *digests, *cards]))


def push(
    directory: str | os.PathLike[str],
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> Upload:
    """Uploads an export as one commit; the repository and the branch are made if need be.

    The hub's client shows its progress on standard error. The token is the one that `hf auth login`
    has stored, or that of HF_TOKEN.

    Args:
      directory: the export; files that are not its own stay here.
      repository: `owner/name`.
      private: visibility of a new repository; None is the owner's default.
      revision: branch; None is the main one.
      message: of the commit.

    Raises:
      ConversionError: `directory` is not a whole export.
      ValueError: the name is no repository's.
      SourceError: there is no token, no right or no network, or the hub refuses.
    """
    if not NAME.fullmatch(repository):
        raise ValueError(
            f"{repository!r} is no name of a repository; expected owner/name, of letters, digits, "
            "-, _ and ."
        )
    files = exported_files(directory)
    # Slow to import.
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise SourceError(f"{repository} cannot be written: HF_HUB_OFFLINE is set; unset it")
    if not get_token():
        raise SourceError(
            f"{repository} cannot be written: there is no token; log in with `hf auth login`, or "
            "set HF_TOKEN to a token that may write"
        )
    if not reachable(constants.ENDPOINT):
        raise SourceError(
            f"{repository} cannot be written: {constants.ENDPOINT} cannot be reached; is there a "
            "network?"
        )
    api = HfApi(library_name="siglip2_jax")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(directory),
            revision=revision,
            commit_message=message or "Model written by siglip2_jax",
            allow_patterns=_literal(files),
        )
    except Exception as error:  # the hub has many kinds, and passes on those of its HTTP client
        raise SourceError(f"{repository} cannot be written: {_reason(error)}") from error
    page = f"{constants.ENDPOINT}/{repository}"
    url = page if revision is None else f"{page}/tree/{revision}"
    return Upload(url=url, commit=commit.oid, files=files)


def _literal(names: Iterable[str]) -> list[str]:
    """Patterns that match these names alone."""
    return [re.sub(r"([*?[])", r"[\1]", name) for name in names]


def _reason(error: Exception) -> str:
    """The error of the hub, with what caused it, in a few words."""
    chain = [error] if error.__cause__ is None else [error, error.__cause__]
    for link in chain:
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status == 401:
            return "the hub does not know the token; log in again with `hf auth login`"
        if status == 403:
            return "the token may not write there; take one with write access to that owner"
    words = [textwrap.shorten(str(link), 200) or type(link).__name__ for link in chain]
    return ": ".join(text.rstrip(".:") for text in words)
