import hashlib

import hub_stand_in
import numpy as np
import pytest

import siglip2_jax
from siglip2_jax.checkpoints import ConversionError, SourceError, hub, write
from siglip2_jax.export.manifest import export_directory
from siglip2_jax.testing import TINY_FIXED, tiny_embedder

# The hub's client sends large files in a way that its HTTP library would have otherwise.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPOSITORY = "me/flowers-16"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub on this machine, whose client is logged in."""
    from huggingface_hub import constants

    with hub_stand_in.running() as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no_token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", hub_stand_in.TOKEN)
        yield server


@pytest.fixture
def export(tmp_path):
    """An export with a tokenizer."""
    path = tmp_path / "export"
    tiny_embedder(TINY_FIXED).save(path, "hf")
    return path


@pytest.fixture
def manifest(tmp_path):
    """An export of another format, known by its manifest."""
    path = tmp_path / "program"
    with export_directory(tiny_embedder(TINY_FIXED, tokenizer=False), path) as (staging, _):
        (staging / "image.bin").write_bytes(b"a program")
    return path


def test_what_is_uploaded_is_the_export_and_loads_again(server, export):
    content = {path.name: path.read_bytes() for path in export.iterdir()}
    (export / ".env").write_text("SECRET=1")
    (export / "notes.txt").write_text("for me alone")
    (export / "sub").mkdir()
    (export / "sub" / "config.json").write_text("{}")
    upload = hub.push(export, REPOSITORY, message="First")
    assert server.branches[REPOSITORY, "main"] == content
    assert set(upload.files) == content.keys() and upload.url == f"{server.url}/{REPOSITORY}"
    assert server.messages == ["First"] and server.private == {REPOSITORY: False}
    assert content["model.safetensors"] in server.blobs.values()  # went as a large file
    found = siglip2_jax.load(REPOSITORY)
    np.testing.assert_array_equal(
        found.embed_texts(["a dog"]), tiny_embedder(TINY_FIXED).embed_texts(["a dog"])
    )
    assert found.embed_texts(["a dog"]).any()


def test_private_and_a_branch(server, export):
    upload = hub.push(export, REPOSITORY, private=True, revision="v2")
    assert server.private == {REPOSITORY: True}
    assert upload.url == f"{server.url}/{REPOSITORY}/tree/v2"
    assert server.branches[REPOSITORY, "main"] == {}
    again = hub.push(export, REPOSITORY, revision="v2")  # both exist now
    assert again.files == upload.files and len(server.branches[REPOSITORY, "v2"]) > 5


def test_an_export_with_a_manifest(server, manifest):
    content = {path.name: path.read_bytes() for path in manifest.iterdir()}
    (manifest / "id_rsa").write_text("SECRET")
    hub.push(manifest, REPOSITORY)
    assert content.keys() > {"image.bin", hub.MANIFEST}
    assert server.branches[REPOSITORY, "main"] == content
    (manifest / "image.bin").write_bytes(b"a pr0gram")
    with pytest.raises(ConversionError, match=r"image\.bin is not what was exported"):
        hub.push(manifest, REPOSITORY)
    (manifest / "image.bin").unlink()
    with pytest.raises(ConversionError, match=r"image\.bin is missing"):
        hub.push(manifest, REPOSITORY)


@pytest.mark.parametrize(
    "files",
    ['{"../export/config.json": {"sha256": "DIGEST"}}', '["config.json"]', "null", '{"a": 1}'],
)
def test_manifests_that_lead_elsewhere(export, manifest, files):
    digest = hashlib.sha256((export / "config.json").read_bytes()).hexdigest()
    (manifest / hub.MANIFEST).write_text(f'{{"files": {files.replace("DIGEST", digest)}}}')
    with pytest.raises(ConversionError, match=r"is missing|lists no files"):
        hub.exported_files(manifest)


@pytest.mark.parametrize("name", hub.NEEDED)
def test_an_export_that_lacks_a_file(export, name):
    (export / name).unlink()
    with pytest.raises(ConversionError, match=r"is missing|is no export"):
        hub.exported_files(export)


def test_what_is_no_whole_export(server, export, tmp_path, fixed):
    with pytest.raises(ConversionError, match="no such directory"):
        hub.push(tmp_path / "absent", REPOSITORY)
    with pytest.raises(ConversionError, match="is no export"):
        hub.push(tmp_path, REPOSITORY)
    write(fixed, tmp_path / "orbax", "orbax")
    with pytest.raises(ConversionError, match="is no export"):
        hub.push(tmp_path / "orbax", REPOSITORY)
    card = export / "README.md"
    card.write_text(card.read_text().replace("- siglip2_jax\n", ""))
    with pytest.raises(ConversionError, match="is no export"):
        hub.push(export, REPOSITORY)
    assert server.private == {}


def test_a_damaged_export(server, export):
    weights = export / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    with pytest.raises(ConversionError):
        hub.push(export, REPOSITORY)
    weights.write_bytes(content[:-4] + np.float32(np.nan).tobytes())
    with pytest.raises(ValueError, match="NaN|finite"):
        hub.push(export, REPOSITORY)
    assert server.private == {}


@pytest.mark.parametrize("name", ["flowers", "me/", "/me", "a/b/c", "me/flow ers", "../me", "é/a"])
def test_bad_names(export, name):
    with pytest.raises(ValueError, match="is no name of a repository; expected owner/name"):
        hub.push(export, name)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "there is no token; log in with `hf auth login`"),
        ("hf_wrong", "the hub does not know the token"),
        (hub_stand_in.READER, "the token may not write there"),
    ],
)
def test_tokens(server, export, monkeypatch, token, said):
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match=said) as error:
        hub.push(export, REPOSITORY)
    assert "\n" not in str(error.value) and "hf_" not in str(error.value)
    assert server.private == {}


def test_no_network(server, export, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9 cannot be reached; is there a network"):
        hub.push(export, REPOSITORY)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        hub.push(export, REPOSITORY)


def test_a_hub_that_refuses(server, export, monkeypatch):
    monkeypatch.setattr(
        hub_stand_in._Handler, "do_PUT", lambda self: self._send(400, {"error": "full"})
    )
    with pytest.raises(SourceError, match="cannot be written: Error while uploading .*: ") as error:
        hub.push(export, REPOSITORY)
    assert "\n" not in str(error.value) and "full" in str(error.value)
    assert server.branches[REPOSITORY, "main"] == {}  # nothing half-written
