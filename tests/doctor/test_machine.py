"""Checks of the machine, each on one that is well and on one that is not."""

import os
import shutil
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import Mesh

from siglip2_jax import outputs
from siglip2_jax.doctor import links, machine, rates, software
from siglip2_jax.doctor.check import failed
from siglip2_jax.doctor.storage import check_workdir
from siglip2_jax.recipes import tiny
from siglip2_jax.sharding import make_mesh
from siglip2_jax.train.chips import GIB, V5E


@dataclass(frozen=True)
class StandIn:
    """A chip that is not there."""

    id: int = 0
    device_kind: str = "TPU v5 lite"
    platform: str = "tpu"
    process_index: int = 0
    slice_index: int = 0
    stats: dict = field(default_factory=dict, hash=False)

    def memory_stats(self):
        return self.stats


def by_check(findings):
    return {x.check: x for x in findings}


def test_versions_that_fit():
    (finding,) = software.check_versions()
    assert finding.status == "PASS" and "jax " in finding.measured


REQUIREMENTS = {
    "siglip2_jax": ["jax>=0.10.2,<0.13", "python>=3.11"],
    "jax": ["jaxlib<=0.12.0,>=0.12.0", 'libtpu==0.0.44.*; extra == "tpu"', 'x>1; extra == "ci"'],
}
INSTALLED = {
    "siglip2_jax": "0.1.0",
    "jax": "0.12.0",
    "jaxlib": "0.12.0",
    "libtpu": "0.0.44.1",
    "python": "3.12.1",
    "x": "0",
}


@pytest.mark.parametrize(
    ("package", "version", "sentence"),
    [
        ("jax", "0.13.0", "jax is 0.13.0, and siglip2_jax 0.1.0 works with <0.13,>=0.10.2"),
        ("jaxlib", "0.11.2", "jaxlib is 0.11.2, and jax 0.12.0 works with <=0.12.0,>=0.12.0"),
        ("libtpu", "0.0.17", "libtpu is 0.0.17, and jax 0.12.0 works with ==0.0.44.*"),
        ("python", "3.10.9", "python is 3.10.9, and siglip2_jax 0.1.0 works with >=3.11"),
    ],
)
def test_versions_that_do_not_fit(monkeypatch, package, version, sentence):
    assert list(software.find_misfits(REQUIREMENTS, INSTALLED)) == []
    monkeypatch.setattr(software, "_requirements", lambda: REQUIREMENTS)
    monkeypatch.setattr(software, "_installed", lambda: INSTALLED | {package: version})
    (finding,) = software.check_versions()
    assert (finding.status, finding.measured) == ("FAIL", sentence) and finding.way_out


def test_hosts_with_other_versions(monkeypatch):
    assert next(iter(software.check_same_versions())).status == "PASS"
    monkeypatch.setattr(software, "gather", lambda text, _: [text, '{"jax": "0.0.1"}'])
    (finding,) = software.check_same_versions()
    assert finding.status == "FAIL" and finding.measured.startswith("process 1 runs ")


def test_devices(monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_PLATFORMS")
    findings = by_check(machine.check_devices(tiny.config(), tmp_path))
    assert {x.status for x in findings.values()} == {"PASS"}
    assert findings["mesh"].measured == "replica 1, fsdp 8"
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # there on many machines
    assert by_check(machine.check_devices(None, tmp_path))["accelerator"].status == "PASS"
    (tmp_path / "vfio" / "0").touch()
    finding = by_check(machine.check_devices(None, tmp_path))["accelerator"]
    assert finding.status == "FAIL" and f"{tmp_path}/vfio/0" in finding.measured


@pytest.mark.parametrize(
    "odd", [{"device_kind": "TPU v4"}, {"process_index": 1}, {"slice_index": 1}]
)
def test_devices_that_are_not_alike(monkeypatch, odd):
    devices = [StandIn(id=i) for i in range(4)]
    monkeypatch.setattr(machine.jax, "devices", lambda: devices)
    assert by_check(machine.check_devices(None))["devices"].status == "PASS"
    devices[3] = StandIn(id=3, **odd)
    finding = by_check(machine.check_devices(None))["devices"]
    assert finding.status == "FAIL" and str(next(iter(odd.values()))) in finding.measured


def test_a_batch_that_the_devices_cannot_share():
    from siglip2_jax.config import override

    with pytest.raises(ValueError, match="batch of 12 at 32 patches cannot be dealt to 8 devices"):
        list(machine.check_devices(override(tiny.config(), ["batch_size=12"])))


def test_memory_of_devices():
    def of(**stats):
        return list(machine.check_device_memory([StandIn(stats=stats)]))

    assert [x.status for x in of(bytes_limit=15 * GIB, bytes_in_use=GIB)] == ["PASS"]
    (finding,) = of(bytes_limit=15 * GIB, bytes_in_use=12 * GIB)
    assert (finding.status, finding.value, finding.limit) == ("FAIL", 3.0, 7.875)
    assert [x.status for x in of()] == ["SKIP"]


def test_memory_of_the_host(monkeypatch):
    assert by_check(machine.check_memory(tiny.config()))["memory"].status == "PASS"
    monkeypatch.setattr(machine, "free_memory", lambda: GIB)
    finding = by_check(machine.check_memory(tiny.config()))["memory"]
    assert finding.status == "FAIL" and finding.limit > 2 and "prefetch" in finding.way_out
    monkeypatch.setattr(machine, "free_memory", lambda: None)
    assert by_check(machine.check_memory(None))["memory"].status == "SKIP"


def test_disk(monkeypatch, tmp_path):
    place = str(tmp_path / "not" / "there")
    assert [x.status for x in machine.check_disk({place: 1e6, "gs://b/run": 1e30})] == [
        "PASS",
        "SKIP",
    ]
    full = namedtuple("Usage", "total used free")(10**12, 10**12, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    (finding,) = machine.check_disk({place: 1e6})
    assert finding.status == "FAIL" and finding.check == f"disk of {place}" and finding.way_out


def test_clocks(monkeypatch):
    assert machine.compare_clocks([5.0]).status == "SKIP"
    assert machine.compare_clocks([5.0, 6.5, 5.1]).status == "PASS"
    monkeypatch.setattr(machine, "gather", lambda text, _: [text, "1.0", None] if text else [text])
    (finding,) = machine.check_clocks()
    assert finding.status == "FAIL" and finding.value > 1e9


def test_a_workdir(tmp_path):
    folder = tmp_path / "a" / "b"
    findings = by_check(check_workdir(str(folder)))
    assert {x.status for x in findings.values()} == {"PASS"} and len(findings) == 6
    assert os.listdir(tmp_path) == []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").touch()
    assert len(list(check_workdir(str(tmp_path / "run")))) == 6
    assert os.listdir(tmp_path / "run") == ["kept"]


@pytest.mark.slow
def test_a_workdir_in_a_store(store):
    findings = list(check_workdir("gs://bucket/run"))
    assert {x.status for x in findings} == {"PASS"} and len(findings) == 6
    assert not list((store.root / "bucket").rglob(".doctor*"))


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied", "/run/file")


@pytest.mark.parametrize("act", ["write", "read", "rename", "delete"])
def test_a_workdir_that_refuses(tmp_path, monkeypatch, act):
    method = {"write": "open", "read": "read_bytes", "rename": "replace", "delete": "unlink"}[act]
    kind = type(outputs.epath.Path(tmp_path))
    real = getattr(kind, method)

    def some(path, *args, **options):
        mine = Path(path).name.startswith(".doctor-")
        renames = act == "rename" and str(path).endswith(".tmp")  # that of the write
        refused = mine and not renames and not options.get("missing_ok")
        return refuse() if refused else real(path, *args, **options)

    monkeypatch.setattr(kind, method, some)
    findings = list(check_workdir(str(tmp_path)))
    assert [x.status for x in findings] == ["PASS"] * (len(findings) - 1) + ["FAIL"]
    assert findings[-1].check == f"workdir: {act}" and "denied" in findings[-1].measured
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("act", "method", "result"), [("list", "iterdir", []), ("stays deleted", "exists", True)]
)
def test_a_workdir_that_shows_what_is_not_there(tmp_path, monkeypatch, act, method, result):
    kind = type(outputs.epath.Path(tmp_path))
    monkeypatch.setattr(kind, method, lambda _: result)
    finding = list(check_workdir(str(tmp_path)))[-1]
    assert (finding.check, finding.status) == (f"workdir: {act}", "FAIL")


def test_a_workdir_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    (finding,) = check_workdir(str(tmp_path / "file" / "run"))
    assert finding.status == "FAIL" and "--workdir" in finding.way_out


def test_a_workdir_that_gives_other_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("siglip2_jax.doctor.storage.write_whole", lambda path, _: path.touch())
    finding = list(check_workdir(str(tmp_path)))[-1]
    assert finding.check == "workdir: read" and "other bytes" in finding.measured


def test_rates_of_devices(monkeypatch):
    import jax

    devices = jax.local_devices()[:1]
    findings = by_check(rates.check_rates(devices))
    assert [x.status for x in findings.values()] == ["PASS", "SKIP", "SKIP"]
    monkeypatch.setattr(rates, "find_chip", lambda _: V5E)
    findings = by_check(rates.check_rates(devices))
    assert [x.status for x in findings.values()] == ["PASS", "FAIL", "FAIL"]
    assert findings["rate of memory"].limit == pytest.approx(0.4095)
    monkeypatch.setattr(rates, "find_chip", lambda _: None)
    monkeypatch.setattr(rates.jnp, "matmul", lambda x, y: x + 1)
    finding = by_check(rates.check_rates(devices))["matrix products"]
    assert finding.status == "FAIL" and "device 0 gives wrong ones" in finding.measured


def test_the_slowest_device_is_named():
    devices = [StandIn(id=i) for i in range(3)]
    assert rates.judge("rate", [1.5e14] * 3, devices, 197e12, "TFLOP/s").status == "PASS"
    finding = rates.judge("rate", [1.5e14, 0.9e14, 1.5e14], devices, 197e12, "TFLOP/s")
    assert finding.status == "FAIL" and finding.way_out.startswith("device 1 is the slowest")
    assert (finding.measured, finding.expected) == ("90 TFLOP/s", "at least 98.5 TFLOP/s")


@pytest.mark.slow
def test_links(monkeypatch):
    mesh = make_mesh(2)
    findings = by_check(links.check_links(mesh))
    good = [name for name, x in findings.items() if x.status == "PASS"]
    assert good == [f"{kind} along {axis}" for axis in mesh.shape for kind in links.COLLECTIVES]
    alone = list(links.check_links(make_mesh(1, list(mesh.devices.flat)[:1])))
    assert [x.status for x in alone] == ["SKIP", "SKIP"]
    monkeypatch.setattr(links, "_check_rate", lambda *_: failed("rate", "none"))
    broken = {
        "sum": lambda x, axis: links.jax.lax.psum(x, axis).at[0, 0].add(1),
        "gather": lambda x, axis: links.jnp.concatenate([x] * mesh.shape[axis]),
        "scattered sum": lambda x, axis: x[: len(x) // mesh.shape[axis]],
    }
    monkeypatch.setattr(links, "COLLECTIVES", broken)
    findings = by_check(links.check_links(mesh))
    assert {x.status for x in findings.values()} == {"FAIL"} and len(findings) == 7
    assert findings["sum along fsdp"].measured == "8 wrong numbers"


def test_rates_of_links():
    def judge(rate, axis, slices=1):
        chips = [StandIn(id=i, slice_index=i % slices) for i in range(4)]
        mesh = Mesh(np.array(chips, object).reshape(2, 2), ("replica", "fsdp"))
        return links.judge_rate("rate", rate, mesh, axis)

    assert judge(4e10, "fsdp").status == "PASS"
    assert judge(1e10, "fsdp").status == "FAIL" and judge(1e10, "replica").status == "FAIL"
    assert judge(1e10, "replica", slices=2).status == "SKIP"
