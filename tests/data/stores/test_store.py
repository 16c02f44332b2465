"""Objects of real servers, which are away, slow, and answer with every kind of fault."""

import os
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from stores import FAULTS

from siglip2_jax.data.example import SourceError
from siglip2_jax.data.stores.client import Client, Counts, counts
from siglip2_jax.data.stores.store import File, Store

DATA = random.Random(0).randbytes(300_000)


@pytest.fixture
def reader():
    """A reader that gives up in seconds."""
    return Store(Client(patience=4.0, stall=0.5))


def test_lists_and_reads_as_a_disk(cloud, reader, tmp_path):
    names = ["data/b.tar", "data/a.tar", "data/.hidden.tar", "data/deep/c.tar", "data/a.json"]
    for i, name in enumerate(names):
        cloud.put(name, DATA[: 1000 + i])
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(DATA[: 1000 + i])
    bucket = f"{cloud.scheme}://bucket"
    for pattern in ("data", "data/", "data/*.tar", "data/[ab].tar", "*/*/c.tar", "data/b.tar"):
        local, stored = (reader.list(f"{root}/{pattern}", ".tar") for root in (tmp_path, bucket))
        assert [x.path.removeprefix(bucket) for x in stored] == [
            x.path.removeprefix(str(tmp_path)) for x in local
        ]
        assert [x.size for x in stored] == [x.size for x in local] and stored
    (first, second) = reader.list(f"{bucket}/data", ".tar")
    assert first == reader.stat(first.path) and first.version
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.read(first) == DATA[:1001] and copy.read(second, 10, 700) == DATA[10:700]
    ranges = [(0, 10), (50, 60), (900, 1000)]
    assert copy.read_ranges(second, ranges) == {(a, b): DATA[a:b] for a, b in ranges}
    with pytest.raises(ValueError, match=r"/\*\.zip matches no object; expected a \.tar file"):
        reader.list(f"{bucket}/data/*.zip", ".tar")


@pytest.mark.parametrize("kind", FAULTS)
def test_what_may_pass_is_tried_again(cloud, reader, kind):
    cloud.put("a", DATA)
    file = reader.stat(f"{cloud.scheme}://bucket/a")
    faults = iter([kind, None, kind, kind, None])
    cloud.fault, before = lambda: next(faults), counts()
    assert reader.read(file, 100, 200_000) == DATA[100:200_000]
    assert reader.read(file) == DATA
    made = counts() - before
    assert (made.requests, made.retries) == (5, 3)
    assert made.bytes == 199_900 + len(DATA)
    assert made.seconds > 3 * 0.05


@pytest.mark.slow
def test_a_store_that_stays_away_is_named(cloud, reader):
    cloud.put("a", DATA)
    file = reader.stat(f"{cloud.scheme}://bucket/a")
    cloud.shut()
    start = time.monotonic()
    with pytest.raises(SourceError, match=rf"^{file.path} cannot be read: tried \d+ times in "):
        reader.read(file)
    assert 1 < time.monotonic() - start < 6
    threading.Timer(1.5, cloud.open).start() if cloud.scheme == "gs" else cloud.open()
    assert reader.read(file) == DATA


def test_what_stays_is_said_at_once(cloud, reader, monkeypatch):
    cloud.put("a", DATA)
    path, before = f"{cloud.scheme}://bucket/a", counts()
    with pytest.raises(SourceError, match=f"^{path}/absent is not in the store"):
        reader.stat(f"{path}/absent")
    old = reader.stat(path)
    cloud.put("a", DATA[::-1])
    for stop in (10, len(DATA)):
        with pytest.raises(SourceError, match=f"^{path} has changed since it was indexed"):
            reader.read(old, 0, stop)
    cloud.put("a", DATA[:1000])
    with pytest.raises(SourceError, match=f"^{path} has changed since it was indexed"):
        reader.read(old, 5000, 6000)
    assert (counts() - before).retries == 0
    # A copy elsewhere has another kind of version, and only its size can be compared.
    for version in ("", "mtime 17"):
        assert reader.read(File(path, 1000, version), 1, 9) == DATA[1:9]


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_no_credentials_are_one_sentence(monkeypatch, tmp_path, scheme):
    pytest.importorskip("obstore")
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "STORAGE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    # Where the platform would be asked for credentials nobody listens.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(SourceError, match=f"^{scheme}://bucket(/a)? cannot be read without cred"):
        Store().stat(f"{scheme}://bucket/a")
    assert time.monotonic() - start < 15


def test_many_threads(cloud):
    reader = Store()
    cloud.put("a", DATA)
    file = reader.stat(f"{cloud.scheme}://bucket/a")
    faults = random.Random(1)
    cloud.fault = lambda: faults.choice([*[None] * 9, "503", "reset", "cut"])
    starts = [faults.randrange(len(DATA) - 1000) for _ in range(200)]
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(lambda start: reader.read(file, start, start + 1000), starts))
    assert read == [DATA[start : start + 1000] for start in starts]


def test_local_files(tmp_path):
    (tmp_path / "a").write_bytes(DATA)
    store, before = Store(), counts()
    file = store.stat(str(tmp_path / "a"))
    assert store.read(file, 7, 5000) == DATA[7:5000]
    os.utime(tmp_path / "a", ns=(1, 1))
    with pytest.raises(SourceError, match="/a has changed since it was indexed; run `siglip2 da"):
        store.read(file, 0, 1)
    with pytest.raises(SourceError, match="/b: there is no such file"):
        store.stat(str(tmp_path / "b"))
    assert counts() - before == Counts()
