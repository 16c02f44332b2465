"""Eight simulated CPU devices for every test, and the paths of the development data."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import stores
from xla import QUICK_FLAGS, keep_programs, plain_environment

# Before jax is imported. The scheduler flag and NPROC keep eight simulated devices on two cores
# from dead-locking in XLA's thread pool.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "32")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false "
    + QUICK_FLAGS
)

# A program for several devices that XLA reads back from its cache can wait for itself for ever.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
keep_programs()  # before other processes of the tests start, which share them

# Jobs that a shell starts in the background ignore Ctrl-C, and so would the runs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402
from oracles import SHARED_IMAGES, Oracle, open_oracle  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
SHARED = Path(os.environ.get("SIGLIP2_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(autouse=True, scope="session")
def user_cache(tmp_path_factory):
    """A directory that no test before has left anything in, in place of the user's own cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("user_cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the checkout; tests that ask for it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"development data not found at {SHARED}")
    return SHARED


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A server that holds what this process and those it starts call `gs://bucket`.

    Tests that ask for it are skipped without the dependency group `remote`.
    """
    for package in (stores.GOOGLE, "gcsfs"):
        pytest.importorskip(package)
    root = tmp_path / "store"
    (root / "bucket").mkdir(parents=True)
    with stores.running(stores.GoogleStore(root)) as running:
        for name, value in running.variables().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture(params=[stores.GoogleStore, stores.AmazonStore])
def cloud(request, tmp_path, monkeypatch):
    """Servers that hold `gs://bucket` and `s3://bucket`; skipped without the group `remote`."""
    for package in (request.param.package, "obstore", "gcsfs"):
        pytest.importorskip(package)
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    google = request.param is stores.GoogleStore
    store = stores.GoogleStore(tmp_path / "store") if google else stores.AmazonStore()
    with stores.running(store):
        for name, value in store.variables().items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.fixture(scope="module")
def browser():
    """Debian's chromium under playwright; tests that ask for it are skipped without either."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's package chromium")
    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """The run of `siglip2 demo`: the one that SIGLIP2_DEMO_RUN names, or a new one."""
    if directory := os.environ.get("SIGLIP2_DEMO_RUN"):
        return Path(directory)
    path = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "siglip2_jax", "demo", "--workdir", "demo_run"]
    subprocess.run(command, cwd=path, env=plain_environment(), check=True)
    return path / "demo_run"


@pytest.fixture(scope="session")
def golden() -> Oracle:
    """Outputs of the official implementation, in the repository."""
    return open_oracle("golden")


@pytest.fixture(
    scope="session",
    params=["golden", *(pytest.param(x, marks=pytest.mark.shared) for x in SHARED_IMAGES)],
)
def oracle(request) -> Oracle:
    """The golden; where there is the development data, its oracles too."""
    if request.param == "golden":
        return open_oracle("golden")
    return open_oracle(request.param, request.getfixturevalue("shared"))


def pytest_collection_finish() -> None:
    """Leaves what is imported out of garbage collections, or each would take half a second."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what needs the development data or a store, and puts the longest files first.

    The runs of `tests/train` and `tests/scripts` are few and long: begun last, they would leave
    other processes of the tests without work.
    """
    tests = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(tests).parts[0] not in ("train", "scripts"))
    fixtures = {"shared": pytest.mark.shared} | dict.fromkeys(
        ("store", "cloud"), pytest.mark.remote
    )
    for item in items:
        for name in fixtures.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(fixtures[name])
