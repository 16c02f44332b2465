"""The directory in which commands keep compiled programs."""

import argparse

import pytest

from siglip2_jax import compilation_cache
from siglip2_jax.cli.compilation import add_cache_option, use_cache


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The directories that are used, where JAX's settings name none."""
    places = []
    monkeypatch.setattr(compilation_cache, "keep_programs", places.append)
    monkeypatch.setattr(compilation_cache, "place_of_jax", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return places


def parsed(*typed):
    parser = argparse.ArgumentParser()
    add_cache_option(parser)
    return parser.parse_args(typed)


def test_the_default_is_the_commands_or_the_users(kept, tmp_path):
    use_cache(parsed())
    use_cache(parsed(), default="run/programs")
    assert kept == [tmp_path / "siglip2_jax" / "programs", "run/programs"]


def test_the_option_goes_before_the_settings_of_jax(kept, monkeypatch):
    monkeypatch.setattr(compilation_cache, "place_of_jax", lambda: "elsewhere")
    use_cache(parsed(), default="run/programs")
    assert kept == []
    for typed in ("gs://bucket/programs", "off"):
        use_cache(parsed("--compilation-cache", typed), default="run/programs")
    assert kept == ["gs://bucket/programs", None]


def test_another_store_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("--compilation-cache", "s3://bucket/programs")
    assert "'s3://bucket/programs' is not a local path, nor on gs://" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ("embed", "MODEL", "--texts", "texts.txt", "--out", "out.npz"),
        ("verify", "MODEL"),
        ("search", "absent.db", "words"),
    ],
    ids=lambda command: command[0],
)
def test_commands_that_run_a_model_keep_programs(siglip2, kept, model_dir, tmp_path, command):
    (tmp_path / "texts.txt").write_text("a boat\n")
    places = {"MODEL": model_dir, "texts.txt": tmp_path / "texts.txt"}
    places |= {name: tmp_path / name for name in ("out.npz", "absent.db")}
    siglip2(*(places.get(word, word) for word in command))
    assert kept == [tmp_path / "siglip2_jax" / "programs"]
