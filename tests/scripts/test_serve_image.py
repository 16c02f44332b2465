"""The container of `siglip2 serve`: its Dockerfile and compose file, without Docker."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from siglip2_jax.cli import parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "serve"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage, with those of the stages that it starts from."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.M)
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            parent, _, stage = rest.partition(" AS ")
            current = stages[stage] = list(stages.get(parent, [("FROM", parent)]))
        elif name:
            current.append((name, rest.strip()))
    return stages


STAGES = read_stages()


def instructions(stage: str, name: str) -> list[str]:
    return [rest for found, rest in STAGES[stage] if found == name]


@pytest.mark.parametrize("target", ["cpu", "tpu"])
def test_an_image_runs_the_server_as_no_root(target):
    tpu = (ROOT / "scripts" / "tpu" / "Dockerfile").read_text()
    (python,) = re.findall(r"^FROM (\S+)", tpu, flags=re.M)
    assert instructions(target, "FROM") == [python] == instructions(f"build-{target}", "FROM")
    (user,) = instructions(target, "USER")
    assert all(int(x) > 0 for x in user.split(":"))
    assert instructions(target, "COPY") == [
        f"--from=build-{target} /siglip2_jax/.venv /siglip2_jax/.venv"
    ]
    assert instructions(target, "RUN") == [] == instructions(target, "ADD")
    (entry,), (command,) = (instructions(target, x) for x in ("ENTRYPOINT", "CMD"))
    program, *start = json.loads(entry)
    assert program == "siglip2" and program in PROJECT["scripts"]
    args = parser().parse_args(start + json.loads(command))
    assert args.run.__module__ == "siglip2_jax.cli.serve"
    assert (args.source, args.host) == ("/model", "0.0.0.0")
    assert instructions(target, "EXPOSE") == [str(args.port)]
    (check,) = instructions(target, "HEALTHCHECK")
    code = json.loads(check.partition("CMD ")[2])[2]
    compile(code, "HEALTHCHECK", "exec")
    assert f"127.0.0.1:{args.port}/health" in code


@pytest.mark.parametrize("target", ["cpu", "tpu"])
def test_an_image_holds_what_the_lock_says(target):
    """The same extras twice, without the project and with it, and nothing that is not locked."""
    install, *syncs = [shlex.split(line) for line in instructions(f"build-{target}", "RUN")]
    assert install == ["pip", "install", "--no-cache-dir", "uv"]
    assert [line[:4] for line in syncs] == [["uv", "sync", "--frozen", "--no-default-groups"]] * 2
    extras = [[b for a, b in zip(x, x[1:], strict=False) if a == "--extra"] for x in syncs]
    expected = ["serve", "search", "heic"] + ["tpu"] * (target == "tpu")
    assert extras == [expected, expected]
    assert set(expected) <= PROJECT["optional-dependencies"].keys()
    assert syncs[0][-1] == "--no-install-project" and syncs[1][-1] == "--no-editable"
    assert instructions(f"build-{target}", "COPY") == ["pyproject.toml uv.lock ./", ". ."]


def test_the_last_stage_is_the_one_for_cpu():
    assert list(STAGES)[-1] == "cpu"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def test_compose_builds_both_images(services):
    assert {x["build"]["target"] for x in services.values()} == {"cpu", "tpu"} <= STAGES.keys()
    for service in services.values():
        build = service["build"]
        root = (FOLDER / build["context"]).resolve()
        assert root == ROOT and (root / build["dockerfile"]) == FOLDER / "Dockerfile"


def test_compose_gives_no_more_than_is_needed(services):
    settings = pytest.importorskip("siglip2_jax.serve.settings").Settings()
    for service in services.values():
        assert service["read_only"] and service["tmpfs"] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"] and "user" not in service
        assert all(volume["read_only"] for volume in service["volumes"])
        assert int(service["stop_grace_period"].removesuffix("s")) > settings.deadline
    assert not {"privileged", "network_mode"} & services["serve"].keys()
    assert services["serve"]["ports"] == ["127.0.0.1:8000:8000"]
    command = services["serve-tpu"]["command"]
    args = parser().parse_args(["serve", *command])
    assert (args.source, args.host) == ("/model", "127.0.0.1")
