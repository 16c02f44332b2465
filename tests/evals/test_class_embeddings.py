"""Class embeddings on disk are those that the model gives, and only that model's."""

import numpy as np
import pytest
from evals.hashing import Hashing

from siglip2_jax.evals import class_embeddings as module
from siglip2_jax.evals.class_embeddings import ClassCache, class_embeddings
from siglip2_jax.evals.prompts import embed_labels

NAMES, TEMPLATES = ("Ant", "bee, honeybee"), ("a {}.", "{}")


def test_read_again_without_the_model(tmp_path):
    cache = ClassCache(str(tmp_path / "new" / "directory"), "release 1")
    model = Hashing()
    expected = embed_labels(Hashing(), NAMES, TEMPLATES, canonical=True)
    for _ in range(2):
        found = class_embeddings(model, NAMES, TEMPLATES, canonical=True, cache=cache)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.float32
    assert model.counts == [4]
    (file,) = (tmp_path / "new" / "directory").iterdir()  # nothing temporary is left
    assert file.suffix == ".npy"


def test_whatever_differs_has_its_own_file(tmp_path):
    def files(names=NAMES, templates=TEMPLATES, canonical=False, of="release 1"):
        options = {"canonical": canonical, "cache": ClassCache(str(tmp_path), of)}
        found = class_embeddings(Hashing(), names, templates, **options)
        np.testing.assert_array_equal(
            found, embed_labels(Hashing(), names, templates, canonical=canonical)
        )
        return len(list(tmp_path.iterdir()))

    assert files() == files() == 1
    assert files(of="release 2") == 2
    assert files(canonical=True) == 3
    assert files(names=NAMES[::-1]) == 4
    assert files(templates=TEMPLATES[::-1]) == 5


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut off", b"something else"])
def test_a_damaged_file_is_written_anew(tmp_path, damage):
    cache, model = ClassCache(str(tmp_path), "release 1"), Hashing()
    expected = class_embeddings(model, NAMES, TEMPLATES, cache=cache)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    for calls in (2, 2):
        found = class_embeddings(model, NAMES, TEMPLATES, cache=cache)
        np.testing.assert_array_equal(found, expected)
        assert len(model.counts) == calls


def test_several_processes_leave_it_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module.jax, "process_count", lambda: 2)
    class_embeddings(Hashing(), NAMES, TEMPLATES, cache=ClassCache(str(tmp_path), "release 1"))
    assert not list(tmp_path.iterdir())
