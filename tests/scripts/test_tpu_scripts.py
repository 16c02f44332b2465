"""The TPU scripts: what they would run, and what they do with a `gcloud` that is this machine."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from siglip2_jax.cli import parser
from siglip2_jax.train.distributed import PREEMPTED
from siglip2_jax.train.liveness import LOST
from siglip2_jax.train.versions import find_commit

ROOT = Path(__file__).parents[2]
TPU = ROOT / "scripts" / "tpu"
SCRIPTS = ("create", "setup", "launch", "logs", "stop", "xpk")
PLACE = ["--name", "run", "--zone", "us-west4-a"]
COMMON = ["--zone=us-west4-a", "--quiet"]
TRAIN = ["--", "configs/x.py", "--workdir", "gs://bucket/run"]
NODE = ["gcloud", "compute", "tpus", "tpu-vm"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]

# Stands for Google Cloud: notes its arguments, gives the states in $FAKE/states one after another,
# and runs the command for all workers of a node once, at home in $FAKE/NODE.
GCLOUD = r"""#!/usr/bin/env bash
printf '%s\n' "$*" >> "$FAKE/calls"
case "$3 $4" in
  "queued-resources describe") head -n 1 "$FAKE/states"; sed -i 1d "$FAKE/states" ;;
  "tpu-vm describe") echo 10.0.0.2 ;;
  "tpu-vm scp") cp "$5" "$FAKE/${6%%:*}/${6#*:}" ;;
  "tpu-vm ssh") for last; do :; done; export HOME="$FAKE/$5"; cd; bash -c "${last#--command=}" ;;
esac
"""
# Training that was interrupted once, then ends.
INTERRUPTED = r"""#!/usr/bin/env bash
where=$MEGASCALE_COORDINATOR_ADDRESS
echo "slice $MEGASCALE_SLICE_ID of $MEGASCALE_NUM_SLICES at $where: $*"
[[ -e ~/again ]] && exit 0
touch ~/again
exit 143
"""
# Training that goes on until SIGTERM and then saves (or until a broken test is long over).
ENDLESS = r"""#!/usr/bin/env bash
trap 'echo saved >> ~/saved; exit 143' TERM
echo started >> ~/started
for _ in {1..1200}; do /bin/sleep 0.05; done
"""


def script(
    name: str, *arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(TPU / f"{name}.sh"), *arguments],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=60,
        check=False,
    )


def dry(name: str, *arguments: str) -> list[list[str]]:
    """The argument vectors that a dry run prints."""
    done = script(name, *PLACE, "--dry-run", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


def ssh(node: str, command: str, worker: str = "all") -> list[str]:
    return [*NODE, "ssh", node, *COMMON, f"--worker={worker}", f"--command={command}"]


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    """A folder with the stand-in for gcloud and homes for the workers of four nodes."""
    if shutil.which("flock") is None:
        pytest.skip("the workers' half of the scripts needs Linux")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gcloud").write_text(GCLOUD)
    (programs / "sleep").write_text("#!/bin/sh\n")  # nobody waits ten seconds for a restart here
    for node in ("run", "run-0", "run-1", "run-2"):
        (tmp_path / node / "venv" / "bin").mkdir(parents=True)
        shutil.copytree(TPU, tmp_path / node / "siglip2_jax" / "scripts" / "tpu")
    for program in programs.iterdir():
        program.chmod(0o755)
    return tmp_path


def in_cloud(cloud: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"FAKE": str(cloud), "PATH": f"{cloud / 'bin'}:{os.environ['PATH']}"}
    return script(name, *PLACE, *arguments, env=env, cwd=cloud)


def install(cloud: Path, node: str, training: str, doctor: int = 0) -> None:
    """A `siglip2` whose training is this script, and whose doctor ends with this exit code."""
    program = cloud / node / "venv" / "bin" / "siglip2"
    first, _, rest = training.partition("\n")
    check = f'if [ "$1" = doctor ]; then echo "checked: $*" >> ~/checked; exit {doctor}; fi'
    program.write_text(f"{first}\n{check}\n{rest}")
    program.chmod(0o755)


def eventually(path: Path, text: str) -> str:
    """The content of a file of a background process, once it holds `text`."""
    for _ in range(400):
        if path.exists() and text in path.read_text():
            return path.read_text()
        time.sleep(0.025)
    raise AssertionError(f"{path} never held {text!r}")


@pytest.mark.parametrize("name", [*SCRIPTS, "slice"])
def test_bash_parses_it(name: str) -> None:
    subprocess.run(["bash", "-n", str(TPU / f"{name}.sh")], check=True)


def test_shellcheck_is_content() -> None:
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed")
    files = sorted(str(path) for path in TPU.glob("*.sh"))
    done = subprocess.run([program, "-x", *files], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_has_an_example_and_every_option(name: str) -> None:
    done = script(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  scripts/tpu/{name}.sh --name run --zone us-west4-a" in done.stdout
    source = (TPU / f"{name}.sh").read_text()
    options = re.findall(r"^    (--[a-z-]+)\)", source, flags=re.M)
    missing = [o for o in [*options, "--slices", "--project"] if o not in done.stdout]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("create", ["--zone", "z"], "--name is missing"),
        ("create", ["--name", "run"], "--zone is missing"),
        ("create", ["--name"], "--name needs a value"),
        ("create", ["--name", "--spot"], "--name needs a value"),
        ("create", ["--name", "Run_1", "--zone", "z"], "--name 'Run_1' must be lower-case"),
        ("create", PLACE, "--type is missing"),
        ("create", [*PLACE, "--type", "v6e-8"], "--runtime is missing"),
        ("create", [*PLACE, "--type", "v5litepod-8", "--slices", "0"], "--slices '0' must"),
        ("create", [*PLACE, "--type", "v5litepod-8", "--poll", "x"], "--poll 'x' must"),
        ("create", [*PLACE, "--spott"], "'--spott' is not an option"),
        ("setup", [*PLACE, "--bucket", "gs://data/train"], "--bucket 'data/train' must"),
        ("setup", [*PLACE, "--ref", "main"], "--ref needs --repo"),
        ("launch", PLACE, "the arguments of siglip2 train are missing"),
        ("launch", [*PLACE, "--", "--workdir", "gs://b/r"], "'--workdir' is not a config"),
        ("launch", [*PLACE, "--", "x.py", "--workdir", "/tmp/r"], "--workdir gs://BUCKET/RUN is"),
        ("launch", [*PLACE, "x.py"], "'x.py' is not an option"),
        ("logs", [*PLACE, "--slice", "1"], "--slice '1' must be from 0 to 0"),
        ("logs", [*PLACE, "--worker", "one"], "--worker 'one' must"),
        ("logs", [*PLACE, "--lines", "-1"], "--lines '-1' must"),
        ("stop", [*PLACE, "--timeout", "0"], "--timeout '0' must"),
        ("xpk", [*PLACE, *TRAIN], "--cluster is missing"),
    ],
)
def test_bad_arguments_are_one_sentence_and_exit_code_2(
    name: str, arguments: list[str], sentence: str
) -> None:
    done = script(name, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{name}.sh: {sentence}")
    assert done.stderr.count("\n") == 1


def test_create_one_slice() -> None:
    assert dry("create", "--type", "v5litepod-8", "--no-wait") == [
        [*QUEUE, "create", "run", *COMMON, "--accelerator-type=v5litepod-8"]
        + ["--runtime-version=v2-alpha-tpuv5-lite", "--node-id=run"]
    ]


def test_create_eight_slices_and_wait() -> None:
    options = ["--type", "v5litepod-256", "--slices", "8", "--spot", "--project", "p"]
    common = [*COMMON, "--project=p"]
    assert dry("create", *options, "--network", "fast", "--runtime", "r") == [
        [*QUEUE, "create", "run", *common, "--accelerator-type=v5litepod-256"]
        + ["--runtime-version=r", "--node-count=8", "--node-prefix=run", "--spot"]
        + ["--network=fast"],
        [*QUEUE, "describe", "run", *common, "--format=value(state.state)"],
    ]


def test_setup_copies_the_checkout_to_all_slices() -> None:
    commands = dry("setup", "--slices", "2", "--bucket", "gs://data")
    archive = "/tmp/siglip2_jax.tar.gz"
    assert commands[0] == ["git", "-C", str(ROOT), "archive", "--format=tar.gz"] + [
        "--prefix=siglip2_jax/",
        f"--output={archive}",
        "HEAD",
    ]
    assert commands[1:5] == [
        [*NODE, "scp", archive, f"{node}:siglip2_jax.tar.gz", *COMMON, "--worker=all"]
        for node in ("run-0", "run-1")
    ] + [
        ssh(node, "rm -rf ~/siglip2_jax && tar -xzf ~/siglip2_jax.tar.gz -C ~")
        for node in ("run-0", "run-1")
    ]
    python, data = commands[5][-1], commands[7][-1]
    assert commands[6][-1] == python and commands[8][-1] == data and len(commands) == 9
    assert "cd ~/siglip2_jax && UV_PROJECT_ENVIRONMENT=~/venv ~/.local/bin/uv sync " in python
    assert "gcsfuse -o ro --implicit-dirs --metadata-cache-ttl-secs=-1 data /data;" in data


def test_setup_clones() -> None:
    clone = "rm -rf ~/siglip2_jax && git clone --depth 1 --branch v1 https://x/y.git ~/siglip2_jax"
    commands = dry("setup", "--repo", "https://x/y.git", "--ref", "v1")
    assert commands[0] == ssh("run", clone)
    assert len(commands) == 2  # nothing to copy, and no bucket


def test_launch_quotes_through_both_shells() -> None:
    odd = "a='x y'; $(touch /tmp/never) \"~\""
    (command,) = dry("launch", *TRAIN, "--set", odd, "--set", "")
    remote = command[-1].removeprefix("--command=")
    assert command == ssh("run", remote)
    assert "MEGASCALE" not in remote
    words = shlex.split(remote)
    train = words[words.index("--supervise") + 1 : words.index(">>")]
    assert train == ["~/venv/bin/siglip2", "1", *TRAIN[1:], "--set", odd, "--set", ""]


@pytest.mark.parametrize("config", ["b16_256", "package.runs:large", "gs://bucket/old/config.json"])
def test_launch_takes_every_kind_of_config(config: str) -> None:
    (command,) = dry("launch", "--", config, *TRAIN[2:])
    assert f"/siglip2 1 {config} --workdir gs://bucket/run " in command[-1]


def test_launch_tells_slices_about_each_other() -> None:
    describe, *starts = dry("launch", "--slices", "3", *TRAIN)
    value = "--format=value(networkEndpoints[0].ipAddress)"
    assert describe == [*NODE, "describe", "run-0", *COMMON, value]
    for index, start in enumerate(starts):
        assert start[:-1] == ssh(f"run-{index}", "")[:-1]
        variables = dict(re.findall(r"MEGASCALE_(\w+)=(\S+)", start[-1]))
        assert variables == {
            "COORDINATOR_ADDRESS": "ADDRESS_OF_run-0:8080",
            "PORT": "8080",
            "NUM_SLICES": "3",
            "SLICE_ID": str(index),
        }
    assert len(starts) == 3


def test_logs() -> None:
    assert dry("logs") == [ssh("run", "tail -n 50 -F ~/siglip2.log", "0")]
    arguments = ["--slices", "8", "--slice", "3", "--worker", "17", "--lines", "5"]
    assert dry("logs", *arguments) == [ssh("run-3", "tail -n 5 -F ~/siglip2.log", "17")]
    assert dry("logs", "--worker", "all") == [ssh("run", "tail -n 50 ~/siglip2.log")]


def test_stop_and_delete() -> None:
    stop, delete = dry("stop", "--delete", "--timeout", "9")
    assert stop[:-1] == ssh("run", "")[:-1] and "flock -w 9 ~/siglip2.lock" in stop[-1]
    assert delete == [*QUEUE, "delete", "run", *COMMON, "--force"]
    assert dry("stop", "--timeout", "9") == [stop]


def test_xpk() -> None:
    options = ["--cluster", "c", "--type", "v5litepod-256", "--slices", "8", "--image", "i"]
    assert dry("xpk", *options, *TRAIN, "--set", "a=x y") == [
        ["xpk", "workload", "create", "--workload=run", "--cluster=c", "--zone=us-west4-a"]
        + ["--tpu-type=v5litepod-256", "--num-slices=8", "--docker-image=i"]
        + ["--max-restarts=100", "--termination-grace-period-seconds=300"]
        + ["--command=siglip2 train configs/x.py --workdir gs://bucket/run --set 'a=x y'"]
    ]


def test_a_dry_run_runs_nothing(cloud: Path) -> None:
    for name, extra in {
        "create": ["--type", "v5litepod-8"],
        "setup": ["--bucket", "data"],
        "launch": ["--slices", "2", *TRAIN],
        "logs": [],
        "stop": ["--delete"],
    }.items():
        assert in_cloud(cloud, name, "--dry-run", *extra).returncode == 0
    assert not (cloud / "calls").exists()


def test_create_waits_until_active(cloud: Path) -> None:
    (cloud / "states").write_text("ACCEPTED\nPROVISIONING\nPROVISIONING\nACTIVE\n")
    done = in_cloud(cloud, "create", "--type", "v5litepod-8", "--poll", "0")
    assert (done.returncode, done.stderr) == (0, "")
    states = [line.split()[-1] for line in done.stdout.splitlines()]
    assert states == ["ACCEPTED", "PROVISIONING", "ACTIVE"]
    assert (cloud / "states").read_text() == ""


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_stops_on_a_state_without_return(cloud: Path, state: str) -> None:
    (cloud / "states").write_text(f"ACCEPTED\n{state}\nACTIVE\n")
    done = in_cloud(cloud, "create", "--type", "v5litepod-8", "--poll", "0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"create.sh: run is {state}, not ACTIVE: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("code", [PREEMPTED, LOST, 128 + signal.SIGKILL])
def test_training_restarts_after_an_interruption_on_every_slice(cloud: Path, code: int) -> None:
    for index in range(3):
        install(cloud, f"run-{index}", INTERRUPTED.replace("143", str(code)))
    done = in_cloud(cloud, "launch", "--slices", "3", *TRAIN, "--set", "a='x  y'")
    assert (done.returncode, done.stderr) == (0, "")
    for index in range(3):
        log = eventually(cloud / f"run-{index}" / "siglip2.log", "train ended with exit code 0")
        started = (
            f"slice {index} of 3 at 10.0.0.2:8080: train configs/x.py --workdir gs://bucket/run"
        )
        assert log.count(f"{started} --set a='x  y'\n") == 2
        assert log.count("siglip2 train ended with exit code") == 2 and f"exit code {code}" in log
        assert (cloud / f"run-{index}" / "checked").read_text() == (
            "checked: doctor configs/x.py --workdir gs://bucket/run --set a='x  y'\n"
        )  # once, before the first start


def test_training_that_fails_is_not_restarted(cloud: Path) -> None:
    install(cloud, "run", "#!/bin/sh\necho broken\nexit 7\n")
    assert in_cloud(cloud, "launch", *TRAIN).returncode == 0
    log = eventually(cloud / "run" / "siglip2.log", "exit code 7")
    assert log.count("broken") == 1
    assert in_cloud(cloud, "stop").returncode == 0  # nothing left to stop


@pytest.mark.parametrize("code", [1, 2])
def test_training_does_not_start_where_the_doctor_fails(cloud: Path, code: int) -> None:
    install(cloud, "run", "#!/bin/sh\ntouch ~/started\n", doctor=code)
    assert in_cloud(cloud, "launch", *TRAIN).returncode == 0
    log = eventually(cloud / "run" / "siglip2.log", f"siglip2 doctor ended with exit code {code}\n")
    assert log.count("\n") == 1 and not (cloud / "run" / "started").exists()
    assert in_cloud(cloud, "launch", "--no-doctor", *TRAIN).returncode == 0
    eventually(cloud / "run" / "siglip2.log", "siglip2 train ended with exit code 0\n")
    assert (cloud / "run" / "checked").read_text().count("checked") == 1


def test_stop_saves_once_and_ends_the_restarts(cloud: Path) -> None:
    install(cloud, "run", ENDLESS)
    assert in_cloud(cloud, "launch", *TRAIN).returncode == 0
    home = cloud / "run"
    eventually(home / "started", "started")
    again = in_cloud(cloud, "launch", *TRAIN)
    assert again.returncode == 1 and "training already runs on" in again.stderr
    done = in_cloud(cloud, "stop", "--delete")
    assert (done.returncode, done.stderr) == (0, "")
    assert (home / "saved").read_text() == "saved\n"
    assert (home / "started").read_text() == "started\n"
    calls = (cloud / "calls").read_text().splitlines()
    assert calls[-1] == "compute tpus queued-resources delete run --zone=us-west4-a --quiet --force"


def test_a_worker_that_does_not_stop_keeps_its_slice(cloud: Path) -> None:
    install(cloud, "run", ENDLESS.replace("exit 143", "true"))
    assert in_cloud(cloud, "launch", *TRAIN).returncode == 0
    eventually(cloud / "run" / "started", "started")
    done = in_cloud(cloud, "stop", "--delete", "--timeout", "1")
    process = int((cloud / "run" / "siglip2.lock").read_text())
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    for child in children:  # by its id: it is ours
        os.kill(int(child), 9)
    assert done.returncode == 1
    assert "did not end in 1 seconds" in done.stderr
    assert "failed on run;" in done.stderr and "nothing was deleted" in done.stderr
    assert "queued-resources delete" not in (cloud / "calls").read_text()


def test_setup_unpacks_what_is_committed(cloud: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    for program in ("curl", "gcsfuse", "sudo", "mountpoint"):
        (cloud / "bin" / program).write_text("#!/bin/sh\n")
        (cloud / "bin" / program).chmod(0o755)
    uv = cloud / "run" / ".local" / "bin" / "uv"
    uv.parent.mkdir(parents=True)
    uv.write_text('#!/bin/sh\necho "$PWD $UV_PROJECT_ENVIRONMENT $*" >> ~/uv\n')
    uv.chmod(0o755)
    install(cloud, "run", "#!/bin/sh\n")
    done = in_cloud(cloud, "setup", "--bucket", "data")
    assert (done.returncode, done.stderr) == (0, "")
    home = cloud / "run"
    assert (home / "siglip2_jax" / "pyproject.toml").exists()
    assert (home / "uv").read_text() == (
        f"{home}/siglip2_jax {home}/venv sync --frozen --no-default-groups "
        "--extra tpu --extra gcs --extra remote --extra tensorboard "
        "--managed-python --python 3.12.16\n"
    )
    assert find_commit(home / "siglip2_jax") == find_commit(ROOT).removesuffix("-dirty")


def test_the_image_holds_what_setup_installs() -> None:
    """The same Python and the same of the lock, once without the project and once with it."""
    remote = dry("setup")[-1][-1]
    options = remote.partition("uv sync ")[2].partition(" && ")[0]
    options, python = options.split(" --managed-python --python ")
    lines = (TPU / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM ")] == [f"FROM python:{python}-slim"]
    synced = [line.partition("uv sync ")[2] for line in lines if line.startswith("RUN uv")]
    assert synced == [f"{options} --no-install-project", options]
    (copied,) = (line.split()[1:-1] for line in lines if line.startswith("COPY p"))
    assert copied == ["pyproject.toml", "uv.lock"] and "COPY . ." in lines


def test_every_command_of_the_guide_is_valid() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "tpu.md").read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("scripts/tpu/")]
    assert {Path(command[0]).stem for command in commands} == set(SCRIPTS)
    for program, *arguments in commands:
        done = script(Path(program).stem, "--dry-run", *arguments)
        assert (done.returncode, done.stderr) == (0, "")


def test_jobset() -> None:
    yaml = pytest.importorskip("yaml")
    spec = yaml.safe_load((TPU / "jobset.yaml").read_text())["spec"]
    assert spec["failurePolicy"]["maxRestarts"] == 10
    actions = {
        reason: rule["action"]
        for rule in spec["failurePolicy"]["rules"]
        for reason in rule["onJobFailureReasons"]
    }
    assert actions == {
        "PodFailurePolicy": "RestartJobSetAndIgnoreMaxRestarts",
        "DeadlineExceeded": "FailJobSet",
    }
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert replicated["replicas"] * job["parallelism"] * chips == 2048
    assert job["completions"] == job["parallelism"] and job["backoffLimit"] == 0
    assert job["activeDeadlineSeconds"] == 14 * 24 * 3600
    exits = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert exits == {
        "containerName": container["name"],
        "operator": "In",
        "values": [PREEMPTED, LOST],
    }
    assert pod["restartPolicy"] == "Never"
    assert container["command"][:2] == ["siglip2", "train"]
    assert container["command"][3:] == ["--workdir", "gs://my-bucket/run"]


def test_jobset_of_embedding() -> None:
    """Every index is a share, hosts have the chips of their topology, and merging comes last."""
    yaml = pytest.importorskip("yaml")
    spec = yaml.safe_load((TPU / "embed_jobset.yaml").read_text())["spec"]
    share, merge = spec["replicatedJobs"]
    assert merge["dependsOn"] == [{"name": share["name"], "status": "Complete"}]
    job = share["template"]["spec"]
    assert job["completionMode"] == "Indexed" and share["replicas"] == 1
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert container["resources"]["limits"]["google.com/tpu"] == int(rows) * int(columns) == 8
    args = command_line(container, index=3)
    assert args.shard == (3, 16) and job["completions"] == job["parallelism"] == 16
    assert args.images == ["gs://my-data/tars/*.tar"] and not args.merge
    (container,) = merge["template"]["spec"]["template"]["spec"]["containers"]
    last = command_line(container, index=0)
    assert last.merge and last.out == args.out
    assert (args.dtype, args.batch_size) == ("bfloat16", 128)


def command_line(container: dict, index: int) -> argparse.Namespace:
    """Arguments of a container's command, as the command line reads them."""
    program, *arguments = container["command"]
    assert program == "siglip2"
    variable = "$(JOB_COMPLETION_INDEX)"
    return parser().parse_args([x.replace(variable, str(index)) for x in arguments])
