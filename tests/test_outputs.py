"""Output files: whole or not at all, and nothing is replaced that should stay."""

import json
import os
import re
import stat
import threading
from pathlib import Path

import jax
import pytest

import siglip2_jax
from siglip2_jax import checkpoints
from siglip2_jax.demo import tiny_config
from siglip2_jax.inference.embedder import Embedder
from siglip2_jax.models.siglip2 import init_params
from siglip2_jax.outputs import check_output, open_output, write_whole
from siglip2_jax.preprocess.image import ImagePreprocessor


def read_all(path: Path, into: list[bytes]) -> threading.Thread:
    """Begins to read a pipe."""
    thread = threading.Thread(target=lambda: into.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread


def test_a_file_and_its_directory(tmp_path):
    path = tmp_path / "new" / "deeper" / "file"
    for content in (b"1", b"22"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(kind), open_output(path) as file:
        file.write(b"new")
        raise kind
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_links_stay_and_lead_to_what_is_new(tmp_path):
    (tmp_path / "disk" / "results").mkdir(parents=True)
    (tmp_path / "disk" / "file").write_bytes(b"old")
    (tmp_path / "results").symlink_to("disk/results")
    # `..` is of the directory that the link is in, not of the way to it.
    (tmp_path / "results" / "link").symlink_to("../file")
    (tmp_path / "link").symlink_to("results/link")
    (tmp_path / "dangling").symlink_to("disk/absent")
    write_whole(tmp_path / "link", b"new")
    write_whole(tmp_path / "dangling", b"newer")
    assert (tmp_path / "disk" / "file").read_bytes() == b"new"
    assert (tmp_path / "disk" / "absent").read_bytes() == b"newer"
    for name in ("link", "results/link", "dangling"):
        assert (tmp_path / name).is_symlink()
    assert sorted(os.listdir(tmp_path / "disk")) == ["absent", "file", "results"]


def test_links_in_a_circle(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        write_whole(tmp_path / "a", b"")


def test_a_pipe_stays_one(tmp_path):
    path, got = tmp_path / "pipe", []
    os.mkfifo(path)
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        thread = read_all(path, got)
        write_whole(tmp_path / name, name)
        thread.join(10)
    assert got == [b"pipe", b"link"] and stat.S_ISFIFO(path.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_pipe_whose_reader_goes(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="pipe: its reader has closed it"), open_output(path) as file:
        os.close(reader)
        file.write(b"x" * 2**20)


def test_a_device_stays_one():
    master, slave = os.openpty()
    try:
        path = os.ttyname(slave)
        write_whole(path, b"to a terminal")
        assert os.read(master, 100) == b"to a terminal"
        assert stat.S_ISCHR(os.stat(path).st_mode)
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_a_descriptor_is_shared(tmp_path, folder):
    """Output before and after stays, as with `--json /dev/stdout > FILE`."""
    if not os.path.isdir(folder):
        pytest.skip(f"this system has no {folder}")
    path, link = tmp_path / "file", tmp_path / "stdout"
    with path.open("wb", buffering=0) as file:
        link.symlink_to(f"{folder}/{file.fileno()}")
        file.write(b"before\n")
        write_whole(link, b"{}\n")
        file.write(b"after\n")
    assert path.read_bytes() == b"before\n{}\nafter\n"
    assert sorted(os.listdir(tmp_path)) == ["file", "stdout"] and link.is_symlink()


def test_what_no_file_can_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "x" / "y"):
        for act in (check_output, lambda path: write_whole(path, b"")):
            with pytest.raises(OSError, match="directory"):
                act(path)
    check_output(tmp_path / "new" / "x")
    assert os.listdir(tmp_path) == ["file"]


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xff.png")
    path = tmp_path / "file.json"
    write_whole(path, json.dumps({"名": name}, ensure_ascii=False))
    assert json.loads(path.read_bytes().decode("utf-8")) == {"名": name}


@pytest.mark.slow
def test_checkpoints_keep_links_and_pipes(tmp_path):
    source = checkpoints.read(_tiny(tmp_path / "tiny.npz"))
    (tmp_path / "disk").mkdir()
    for format in ("hf", "orbax", "npz"):
        link = tmp_path / f"link.{format}"
        link.symlink_to(f"disk/{format}")
        for _ in range(2):
            checkpoints.write(source, link, format, overwrite=True)
        assert link.is_symlink() and checkpoints.read(link).config == source.config
    assert sorted(os.listdir(tmp_path / "disk")) == ["hf", "npz", "orbax"]
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    thread = read_all(pipe, got)
    checkpoints.write(source, pipe, "npz")
    thread.join(10)
    (tmp_path / "copy.npz").write_bytes(got[0])
    copy = checkpoints.read(tmp_path / "copy.npz")
    assert copy.params.keys() == source.params.keys() and stat.S_ISFIFO(pipe.stat().st_mode)
    assert all((x.read() == source.params[name].read()).all() for name, x in copy.params.items())


def _tiny(path: Path) -> Path:
    config = tiny_config()
    preprocess = ImagePreprocessor(patch_size=config.vision.patch_size, image_size=None)
    Embedder(config, init_params(config, jax.random.key(0)), preprocess).save(path, "npz")
    return path


def test_one_module_puts_files_in_their_place():
    """The other cases: directories, and files that two processes may write at the same time."""
    root = Path(siglip2_jax.__file__).parent
    renaming = re.compile(
        r"os\.(replace|rename)\(|\.rename\(|temporary\.replace\(|[fr+] ?\"[^\"]*\.tmp\""
    )
    modules = {
        str(x.relative_to(root)) for x in root.rglob("*.py") if renaming.search(x.read_text())
    }
    directories = {"train/checkpoint.py", "search/column.py"}
    assert modules == {"outputs.py", "inference/shards/write.py", *directories}
