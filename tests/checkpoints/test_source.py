import sys
import threading
import types

import pytest

from siglip2_jax.checkpoints import ConversionError, SourceError, read, source, write


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Look-ups of names, which go on for ever, as behind some firewalls; those that ended."""
    end, ended = threading.Event(), []

    def look_up(*_, **__):
        end.wait(30)
        ended.append("look-up")
        raise OSError("too late for anyone to hear")

    monkeypatch.setattr(source, "PATIENCE", 0.1)
    monkeypatch.setattr("urllib.request.urlopen", look_up)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield ended
    end.set()


def test_offline_is_said_without_waiting_for_the_network(no_network):
    with pytest.raises(SourceError, match="'google/siglip2-x'.* it cannot be reached"):
        read("google/siglip2-x")
    assert no_network == []


def test_offline_by_choice_asks_nobody(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *x, **_: asked.append(x))
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        read("google/siglip2-base-patch16-224")
    assert asked == []


def test_cached_copies_work_offline(no_network, tmp_path, fixed, assert_equal):
    repository = tmp_path / "cache" / "models--someone--model"
    write(fixed, repository / "snapshots" / "0123abcd", "hf")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    found = read("someone/model")
    assert found.source == "someone/model"
    assert_equal(found, fixed)


def test_online_downloads_only_what_is_read(tmp_path, monkeypatch, fixed):
    write(fixed, tmp_path / "snapshot", "hf")
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(source, "reachable", lambda url: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert read("someone/model@v2").config == fixed.config
    assert asked["repository"] == "someone/model" and asked["revision"] == "v2"
    assert not asked["local_files_only"]
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_hub_errors_are_one_sentence(monkeypatch):
    def download(*_, **__):
        raise RuntimeError("404: no such repository\nand much more")

    monkeypatch.setattr(source, "reachable", lambda url: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(SourceError, match=r"\(404: no such repository\), did you mean") as error:
        read("google/siglip2-base-patch16-naflexx")
    assert "\n" not in str(error.value)


def test_reachability(monkeypatch):
    assert not source.reachable("http://127.0.0.1:9")
    assert not source.reachable("not a url")


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("siglip2_b16_naflex.npz", "google/siglip2-base-patch16-naflex"),
        ("B/16 256", "google/siglip2-base-patch16-256"),
        ("{}/modle.npz", "{}/model.npz"),
    ],
)
def test_misspelt_sources(tmp_path, text, suggestion):
    (tmp_path / "model.npz").write_bytes(b"")
    with pytest.raises(SourceError) as error:
        read(text.format(tmp_path))
    assert f"did you mean {suggestion.format(tmp_path)}?" in str(error.value)
    assert "a source is an .npz file" in str(error.value)


def test_directories_of_other_things(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConversionError, match=r"holds no checkpoint \(found notes\.txt\)"):
        read(tmp_path)


def test_buckets_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SourceError, match=r"pip install 'siglip2_jax\[gcs\]'"):
        read("gs://big_vision/siglip2/siglip2_b16_naflex.npz")


def test_buckets_without_a_network(monkeypatch, no_network):
    monkeypatch.setattr(source, "PATIENCE", 0.1)
    monkeypatch.setitem(sys.modules, "gcsfs", types.ModuleType("gcsfs"))
    with pytest.raises(SourceError, match="Google Cloud Storage cannot be reached"):
        read("gs://big_vision/siglip2/siglip2_b16_naflex.npz")
