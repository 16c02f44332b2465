"""The command line as a whole: help, one sentence for everything a user may get wrong."""

import os
import shlex
import subprocess
import sys

import pytest

from siglip2_jax import __version__
from siglip2_jax.cli import COMMANDS, main, parser

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


def python(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_that_parses(capsys, name):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    example = shlex.split(" ".join(text.partition("example: ")[2].split()))
    assert example[:2] == ["siglip2", name]
    assert callable(parser().parse_args(example[1:]).run)


def test_an_error_says_where_it_happened(siglip2, monkeypatch):
    error = ValueError("the shape is (8,)")
    error.add_note("in the loss of the objective 'light'")
    error.add_note("JAX has removed its internal frames")

    def run(args):
        raise error

    monkeypatch.setattr("siglip2_jax.cli.configs.run", run)
    result = siglip2("configs")
    message = "siglip2: error: the shape is (8,) (in the loss of the objective 'light')\n"
    assert result.code == 2 and result.err == message


def test_without_a_command(siglip2):
    result = siglip2()
    assert result.code == 2 and all(name in result.out for name in NAMES)
    assert siglip2("--version").out.strip() == __version__


def test_help_is_immediate():
    code = (
        "import sys, siglip2_jax.cli as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print({'jax', 'numpy', 'orbax', 'PIL'} & set(sys.modules))"
    )
    result = python("-c", code)
    assert result.stdout.splitlines()[-1] == "set()", result.stderr
    assert "classify" in result.stdout


BAD_INPUT = {
    "missing file": ("info {tmp}/absent.npz", "there is no file or directory"),
    "misspelt file": ("info {model}x", "did you mean"),
    "not a checkpoint": ("info {tmp}/photo.npz", "is text"),
    "empty directory": ("verify {tmp}/empty", "holds no checkpoint"),
    "wrong tokenizer": ("verify {few} --tokenizer {model}", "1024 ids"),
    "no such tokenizer": ("verify {few} --tokenizer {tmp}/absent", "no such tokenizer"),
    "tokenizer of another kind": ("verify {few} --tokenizer {tmp}/photo.npz", "SentencePiece"),
    "convert to what exists": ("convert {bare} {tmp} --to hf", "exists"),
    "convert with a wrong tokenizer": (
        "convert {few} {tmp}/new --to hf --tokenizer {model}",
        "1024 ids",
    ),
    "no labels": ("classify {model} {photo}", "no labels were given"),
    "blank labels": ("classify {model} {photo} --labels ' , '", "no labels were given"),
    "labels in another encoding": (
        "classify {model} {photo} --labels-file {photo}",
        "not text in UTF-8",
    ),
    "no labels file": ("classify {model} {photo} --labels-file {tmp}/absent", "No such file"),
    "no tokenizer": ("classify {bare} {photo} --labels dog", "without a tokenizer"),
    "no such photo": ("classify {model} {tmp}/absent.jpg --labels dog", "matches no image"),
    "directory without photos": ("embed {model} --images {tmp}/empty --out x.npz", "no image"),
    "no texts": ("embed {model} --texts {tmp}/blank.txt --out x.npz", "holds no text"),
}


@pytest.mark.parametrize("command, words", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_sentence(
    siglip2, model_dir, bare_npz, few_words, photos, tmp_path, monkeypatch, command, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.npz").write_text("just some words")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "empty").mkdir()
    names = {"model": model_dir, "bare": bare_npz, "few": few_words, "tmp": tmp_path}
    filled = command.format(**names, photo=photos / "a.png")
    before = sorted(tmp_path.rglob("*"))
    result = siglip2(*shlex.split(filled))
    assert result.code == 2 and result.out == ""
    assert result.err.startswith("siglip2: error: ") and result.err.count("\n") == 1
    assert words in result.err
    assert sorted(tmp_path.rglob("*")) == before  # nothing is left behind


@pytest.mark.parametrize("option", [("--batch-size", "0"), ("--top", "-1"), ("--dtype", "int8")])
def test_bad_options_name_themselves(capsys, option):
    with pytest.raises(SystemExit) as stop:
        main(["classify", "MODEL", "a.jpg", "--labels", "a", *option])
    assert stop.value.code == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .startswith(f"siglip2 classify: error: argument {option[0]}")
    )


def test_a_repository_without_a_network(tmp_path):
    """Runs in a process of its own, as a user would meet it: one sentence."""
    result = python(
        "-c",
        "import sys; from siglip2_jax.cli import main; sys.exit(main())",
        "info",
        "google/siglip2-base-patch16-naflex",
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("siglip2: error: ") and result.stderr.count("\n") == 1
    assert "HF_HUB_OFFLINE is set" in result.stderr


def test_a_closed_pipe_is_no_error(model_dir):
    """`siglip2 info … | true`"""
    code = "import sys; from siglip2_jax.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "info", str(model_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(120) == 0
