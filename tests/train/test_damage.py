"""Damaged checkpoints: a run goes on from the newest whole one, and readers say what is wrong."""

import json
import logging
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore
from etils import epath
from train.runs import Sevens, numbers, run, save_run, stage

from siglip2_jax.checkpoints import ConversionError, read
from siglip2_jax.checkpoints.damage import find_damage
from siglip2_jax.cli import main
from siglip2_jax.config import Continue
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.run import Run
from siglip2_jax.train.start import abstract_state, initialize_stage

CONFIG = run(stage(batch_size=16))
OLDER, NEWEST = 4, 10
ARRAY = "text/head/kernel"
KINDS = {
    "missing": None,
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "overwritten": lambda content: bytes(byte ^ 0x5A for byte in content),
}
# Of these nothing is read.
SPARE = re.compile(r"(.*/)?commit_success.txt|.*/ocdbt.process_0/manifest.ocdbt")


def damage(path: Path, kind: str) -> bytes:
    """Damages a file; returns what it held."""
    content, change = path.read_bytes(), KINDS[kind]
    if change:
        path.write_bytes(change(content))
    else:
        path.unlink()
    return content


def is_harmless(file: str) -> bool:
    """Tells damage that leaves a checkpoint whole."""
    return bool(SPARE.fullmatch(file))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with two checkpoints, and their states."""
    workdir = tmp_path_factory.mktemp("run")
    states = save_run(workdir, CONFIG, [OLDER, NEWEST], make_mesh(1, jax.devices()[:4]))
    return workdir, {step: numbers(state) for step, state in states.items()}


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved[0], tmp_path / "run")


def newest(workdir: Path) -> Path:
    return workdir / "checkpoints" / str(NEWEST)


def files(workdir: Path) -> list[str]:
    """Every file of the newest checkpoint, by its path in it."""
    folder = newest(workdir)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def resume(workdir: Path):
    """The step that a run resumes from, and its state."""
    started = Run(CONFIG, epath.Path(workdir), {})
    like = abstract_state(Sevens(CONFIG.resolved[0]), started.mesh)
    state = started.checkpoints.restore(started.saved, like)
    started.close()
    return started.saved, numbers(state)


@pytest.mark.slow
def test_damage_of_every_file_is_noticed(workdir):
    """Or does no harm; each file of three trees, and each file beside them."""
    folder, seen = newest(workdir), files(workdir)
    assert len(seen) == 2 + 3 * 6 and find_damage(epath.Path(folder)) is None
    for file in seen:
        for kind in KINDS:
            content = damage(folder / file, kind)
            phrase = find_damage(epath.Path(folder))
            (folder / file).write_bytes(content)
            assert (phrase is None) == is_harmless(file), (file, kind, phrase)
            if phrase is not None:
                assert file.split("/")[0] in phrase or "record" in phrase, (file, kind, phrase)
                assert len(phrase) < 80 and "\n" not in phrase


@pytest.mark.parametrize(
    "content", [{}, {"custom_metadata": {"step": NEWEST}, "item_handlers": {"params": ""}}, []]
)
@pytest.mark.slow
def test_a_record_without_what_resuming_needs(workdir, content):
    (newest(workdir) / "_CHECKPOINT_METADATA").write_text(json.dumps(content))
    phrase = find_damage(epath.Path(newest(workdir)))
    assert phrase in (
        "it has no record",
        "its record lacks 'stage'",
        "_CHECKPOINT_METADATA is damaged",
    )


@pytest.mark.slow
def test_arrays_are_shared_among_processes(workdir):
    """Damage to one array is noticed by whoever reads it."""
    (data,) = newest(workdir).glob("optimizer/ocdbt.process_0/d/*")
    data.write_bytes(data.read_bytes()[: data.stat().st_size * 4 // 5])
    phrases = [find_damage(epath.Path(newest(workdir)), part, 40) for part in range(40)]
    assert 0 < phrases.count(None) < 40


CASES = [
    ("_CHECKPOINT_METADATA", "missing"),
    pytest.param("params/_METADATA", "empty", marks=pytest.mark.slow),
    ("optimizer/ocdbt.process_0/d/*", "cut"),
    pytest.param("average/d/*", "overwritten", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("pattern", "kind"), CASES)
@pytest.mark.slow
def test_a_run_goes_on_from_the_newest_whole_checkpoint(
    saved, workdir, caplog, capfd, pattern, kind
):
    """The damaged one moves aside, and a later one at the same step is as good as any."""
    (path,) = newest(workdir).glob(pattern)
    damage(path, kind)
    with caplog.at_level(logging.WARNING):
        step, state = resume(workdir)
    assert step == OLDER
    for path, x in state.items():
        np.testing.assert_array_equal(x, saved[1][OLDER][path], err_msg=path)
    (line,) = [x for x in caplog.messages if "damaged" in x]
    assert "checkpoint of step 10 is damaged" in line and "newest whole one, step 4" in line
    assert {x.name for x in newest(workdir).parent.iterdir()} == {"4", "10.damaged"}
    assert capfd.readouterr().err.count("Traceback") == 0
    read(workdir)


@pytest.mark.slow
def test_damaged_twice_at_the_same_step(saved, workdir, tmp_path):
    """The step is saved again, is damaged again, and takes the place of the first."""
    for _ in range(2):
        shutil.copytree(newest(saved[0]), newest(workdir), dirs_exist_ok=True)
        (newest(workdir) / "params" / "_METADATA").unlink()
        assert resume(workdir)[0] == OLDER
    shutil.copytree(newest(saved[0]), newest(workdir))
    step, state = resume(workdir)
    assert step == NEWEST
    np.testing.assert_array_equal(state["params/b"], saved[1][NEWEST]["params/b"])


def test_other_values_are_noticed_where_all_files_can_be_read(workdir):
    """One bit of one array, written by TensorStore itself, so that no checksum of a file fails."""
    store = {"driver": "ocdbt", "base": f"file://{newest(workdir)}/average/"}
    store["path"] = ARRAY.replace("/", ".") + "/"
    array = tensorstore.open({"driver": "auto", "kvstore": store}, open=True).result()
    values = array.read().result()
    values.view(np.uint32).reshape(-1)[7] ^= 1
    array.write(values).result()
    assert find_damage(epath.Path(newest(workdir))) == (
        f"values of average/{ARRAY} are not those that were saved"
    )
    params = read(workdir / "checkpoints" / str(NEWEST) / "average").params
    with pytest.raises(ConversionError, match=f"values of average/{ARRAY} are not those that were"):
        params[ARRAY].read()


def test_a_record_that_says_something_else(workdir):
    """A digit is another, or a tree or an array is missing; all is JSON as before."""
    path = newest(workdir) / "_CHECKPOINT_METADATA"
    whole = json.loads(path.read_text())
    for key in ("position", "bad_examples", "digests"):
        path.write_text(
            json.dumps(whole | {"custom_metadata": whole["custom_metadata"] | {key: 3}})
        )
        phrase = find_damage(epath.Path(newest(workdir)))
        assert phrase == "its record is not the one that was saved"
        with pytest.raises(ConversionError, match=phrase):
            read(workdir)
    trees = {name: x for name, x in whole["item_handlers"].items() if name != "average"}
    path.write_text(json.dumps(whole | {"item_handlers": trees}))
    assert find_damage(epath.Path(newest(workdir))) == "its record is of other trees"
    path.write_text(json.dumps(whole))
    listing = newest(workdir) / "average" / "_METADATA"
    content = json.loads(listing.read_text())
    content["tree_metadata"].popitem()
    listing.write_text(json.dumps(content))
    phrase = "average/ lists other arrays than were saved"
    assert find_damage(epath.Path(newest(workdir))) == phrase


@pytest.mark.parametrize("change", ["key_type", "key_metadata"])
def test_a_listing_that_orbax_reads_otherwise(workdir, change):
    """Each array is found where it was saved, and JSON is JSON as before."""
    listing = newest(workdir) / "optimizer" / "_METADATA"
    listing.write_text(listing.read_text().replace(f'"{change}"', f'"{change}s"', 1))
    step, _ = resume(workdir)
    assert step == OLDER


def test_a_record_that_orbax_cannot_open(workdir, caplog):
    """One letter of a key is another; Orbax opens all checkpoints or none."""
    records = [workdir / "checkpoints" / str(x) / "_CHECKPOINT_METADATA" for x in (NEWEST, OLDER)]
    whole = records[0].read_text()
    records[0].write_text(whole.replace('"item_handlers"', '"item_hbndlers"', 1))
    with caplog.at_level(logging.WARNING):
        assert resume(workdir)[0] == OLDER
    assert "step 10 is damaged (Orbax cannot open it)" in caplog.text
    records[1].write_text(whole.replace('"item_handlers"', '"item_hbndlers"', 1))
    with pytest.raises(ValueError, match="holds a checkpoint whose record is damaged"):
        resume(workdir)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "10.damaged"}


def test_no_whole_checkpoint(workdir, capsys):
    """Nothing moves, or the next attempt would begin anew."""
    for step in (OLDER, NEWEST):
        (workdir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").unlink()
    for _ in range(2):
        with pytest.raises(
            ValueError, match="no whole checkpoint .10: _CHECKPOINT_METADATA is mis"
        ):
            resume(workdir)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"4", "10"}
    assert not (workdir / "config.json").exists()


def test_a_stage_that_continues_from_a_damaged_one(workdir, tmp_path):
    (newest(workdir) / "params" / "manifest.ocdbt").unlink()
    config = run(stage(start=Continue(workdir=str(workdir))))
    message = r"'main' continues from .*checkpoints/10, which is damaged .files of params/ are miss"
    with pytest.raises(ValueError, match=message):
        initialize_stage(Sevens(config.resolved[0]), config, make_mesh(1), tmp_path)
    assert newest(workdir).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_harmless_damage_is_harmless(saved, workdir, kind):
    """All of it at once: the newest state comes back, bit by bit."""
    for file in files(workdir):
        if is_harmless(file):
            damage(newest(workdir) / file, kind)
    step, state = resume(workdir)
    assert step == NEWEST
    for path, x in state.items():
        np.testing.assert_array_equal(x, saved[1][step][path], err_msg=path)


@pytest.mark.slow
def test_readers_of_a_damaged_checkpoint_say_one_sentence(saved, workdir, capfd):
    """Or read it as it was saved: of its optimizer they know nothing."""
    for file in files(workdir):
        for kind in KINDS:
            damage(newest(workdir) / file, kind)
            try:
                params = {path: x.read() for path, x in read(workdir).params.items()}
            except ConversionError as error:
                assert "checkpoints/10" in str(error) and len(str(error)) < 300, (file, kind)
                assert not is_harmless(file)
            else:
                for path, x in params.items():
                    np.testing.assert_array_equal(x, saved[1][NEWEST][f"params/{path}"])
            shutil.copytree(newest(saved[0]), newest(workdir), dirs_exist_ok=True)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("command", ["info", "convert"])
@pytest.mark.parametrize(("pattern", "kind"), [CASES[0], ("params/d/*", "cut")])
def test_commands_say_one_sentence(workdir, tmp_path, capfd, caplog, command, pattern, kind):
    (path,) = newest(workdir).glob(pattern)
    damage(path, kind)
    target = [str(tmp_path / "model"), "--to", "hf"] if command == "convert" else []
    assert main([command, str(workdir), *target]) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"siglip2: error: {newest(workdir)}: ") and len(err.splitlines()) == 1, (
        err
    )
    assert caplog.text == ""  # which a user would read before it
    assert not (tmp_path / "model").exists()
