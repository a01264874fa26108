"""The image of ``deploy/Dockerfile``: built without a daemon, on a stand-in base that Debian's debootstrap makes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kit.processes import ROOT, SECRET, Process, run_process, token_of
from tests.kit.waiting import DEADLINE
from tests.matrix.deploy_tools import find_deploy_tool
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool

DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
FOLDER: Final = ROOT / ".matrix" / "image"
BUILDAH: Final = ("buildah", f"--root={FOLDER}/storage", f"--runroot={FOLDER}/run", "--storage-driver=vfs")
#: The packages that the official image of Python has, and ``useradd``.
PACKAGES: Final = "python3,python3-venv,passwd,ca-certificates"
LABELS: Final = {"VERSION": "1.2.3", "REVISION": "abcdef0", "CREATED": "2026-11-30T00:00:00Z"}
#: A runtime of containers without one hierarchy of control groups leaves them out, if it finds none.
WITHOUT_CGROUPS: Final = "umount -R /sys/fs/cgroup 2> /dev/null; mount -t tmpfs none /sys/fs/cgroup; exec "


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def buildah(*arguments: str) -> str:
    return run(*BUILDAH, *arguments).strip()


def pip_options() -> list[str]:
    """Return the options that give a build this machine's sources of packages, with the folders that they name."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    chosen = {
        re.sub(r"^(global|:env:)\.", "", name): value.strip("'")
        for name, _, value in (
            line.partition("=") for line in run(sys.executable, "-m", "pip", "config", "list").splitlines()
        )
        if name.startswith(("global.", ":env:."))
    }
    file = FOLDER / "pip.conf"
    file.write_text("".join(["[global]\n", *(f"{name} = {value}\n" for name, value in chosen.items())]))
    options = ["--volume", f"{file}:/etc/pip.conf:ro"]
    words = {word.removeprefix("file://") for value in chosen.values() for word in value.split()}
    folders = {Path(word) if Path(word).is_dir() else Path(word).parent for word in words if Path(word).exists()}
    # A folder of links may lead to a neighbour.
    folders = {folder.parent if folder.name == "simple" else folder for folder in folders if folder.is_absolute()}
    for folder in sorted(folders | {Path("/etc/ssl/certs")}):
        options += ["--volume", f"{folder}:{folder}:ro"]
    return options


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    """The name of the image, of which one build serves all tests."""
    if os.geteuid() != 0 or any(find_tool(name) is None for name in ("buildah", "crun", "debootstrap")):
        unavailable("an image is built by root, with buildah, crun and debootstrap")
    base = FOLDER / "base"
    if not (FOLDER / ".base").exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "stable", str(base))
        (FOLDER / ".base").touch()
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(base), "/")
    buildah("commit", "--quiet", container, "localhost/stand-in")
    build_arguments = [f"--build-arg={name}={value}" for name, value in LABELS.items()]
    buildah(
        "build",
        "--isolation=chroot",
        "--format=docker",
        "--build-arg=BASE=localhost/stand-in",
        *build_arguments,
        *pip_options(),
        f"--file={DOCKERFILE}",
        "--tag=nuropb-gateway",
        str(ROOT),
    )
    yield "nuropb-gateway"
    buildah("rm", "--all")
    buildah("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def root(image: str) -> Path:
    """The files of the image."""
    return Path(buildah("mount", buildah("from", "--pull-never", image)))


@pytest.fixture(scope="module")
def config(image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(buildah("inspect", "--type=image", image))["Docker"]["config"]
    return found


class Container:
    """A running container, and commands in it."""

    def __init__(self, process: Process, command: tuple[str, ...], pid_file: Path) -> None:
        self.process = process
        self._command = command
        self._pid_file = pid_file

    async def run(self, *command: str) -> tuple[int, str]:
        line = " ".join([*self._command, "exec", "gateway", '"$@"'])
        async with run_process("unshare", "--mount", "sh", "-c", WITHOUT_CGROUPS + line, "sh", *command) as process:
            status = await process.wait()
            return status, process.output

    def signal(self, number: signal.Signals) -> None:
        os.kill(int(self._pid_file.read_text()), number)


@asynccontextmanager
async def running(root: Path, config: dict[str, Any], folder: Path, **settings: str) -> AsyncIterator[Container]:
    """Run the image as its own configuration says, with a read-only root, no capability and a network of its own."""
    (folder / "jwt_key").write_text(SECRET)
    await asyncio.to_thread(subprocess.run, ["crun", "spec"], cwd=folder, check=True)
    specification = json.loads((folder / "config.json").read_text())
    user, group = map(int, config["User"].split(":"))
    process = specification["process"]
    process |= {
        "terminal": False,
        "noNewPrivileges": True,
        "user": {"uid": user, "gid": group},
        "args": [*config["Entrypoint"], *config["Cmd"]],
        "env": [*config["Env"], *(f"NUROPB_GATEWAY_{name}={value}" for name, value in settings.items())],
        "capabilities": {name: [] for name in process["capabilities"]},
    }
    specification["root"] = {"path": str(root), "readonly": True}
    unshared = specification["linux"]["namespaces"]
    specification["linux"]["namespaces"] = [each for each in unshared if each["type"] != "cgroup"]
    secret = {"destination": "/run/secrets", "type": "bind", "source": str(folder), "options": ["rbind", "ro"]}
    mounts = [each for each in specification["mounts"] if each["type"] not in ("cgroup", "sysfs")]
    specification["mounts"] = [*mounts, secret]
    (folder / "config.json").write_text(json.dumps(specification))
    command = ("crun", "--cgroup-manager=disabled", f"--root={folder}/state")
    pid_file = folder / "pid"
    line = " ".join([*command, "run", f"--bundle={folder}", f"--pid-file={pid_file}", "gateway"])
    async with run_process("unshare", "--mount", "sh", "-c", WITHOUT_CGROUPS + line) as started:
        yield Container(started, command, pid_file)


def test_hadolint_finds_nothing() -> None:
    run(str(find_deploy_tool("hadolint")), str(DOCKERFILE))


def test_the_image_names_itself_and_has_a_user_a_health_check_and_a_stop_signal(config: dict[str, Any]) -> None:
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert {name.upper(): labels[name.lower()] for name in LABELS} == LABELS
    assert labels.keys() >= {"title", "description", "licenses"}
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][0] == "CMD"


def test_the_list_of_packages_in_the_image_is_complete(root: Path) -> None:
    (environment,) = (root / "opt" / "nuropb-gateway" / "lib").glob("python3.*/site-packages")
    installed = {re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower() for path in environment.glob("*.dist-info")}
    bom = json.loads((root / "opt" / "nuropb-gateway" / "sbom.cdx.json").read_text())
    listed = {re.sub(r"[-_.]+", "-", each["name"]).lower() for each in bom["components"]}
    assert installed == listed
    assert "nuropb-gateway-asgi" in installed
    assert "pip" not in installed


async def test_a_container_with_a_read_only_root_answers_and_ends_with_0_on_sigterm(
    root: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    async with running(root, config, tmp_path, JWT_KEY_FILE="/run/secrets/jwt_key", HTTP="on") as container:
        await container.process.line("The gateway is at ws://0.0.0.0:8000/ws")
        assert await container.run(*config["Healthcheck"]["Test"][1:]) == (0, "")
        ready = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/readyz').status)"
        assert await container.run("python3", "-c", ready) == (0, "200")
        call = ("nuropb-gateway", "call", "demo", "add", "a:=2", "b:=3", "--token", token_of("alice"))
        assert await container.run(*call) == (0, "5")
        status, output = await container.run("touch", "/opt/nuropb-gateway/new")
        assert status != 0, output
        assert "Read-only file system" in output
        container.signal(signal.SIGTERM)
        assert await container.process.wait() == 0, container.process.output
        assert "draining" in container.process.output


async def test_a_container_that_has_just_begun_ends_on_its_first_signals(
    root: Path, config: dict[str, Any], tmp_path: Path
) -> None:
    """The kernel ignores signals to the process with the id 1 until it has a handler, after Python's own start."""
    tmp_path.chmod(0o755)
    async with running(root, config, tmp_path, JWT_KEY_FILE="/run/secrets/jwt_key") as container:
        async with asyncio.timeout(DEADLINE):
            while not container.process.ended:
                if (tmp_path / "pid").exists() and container.process.returncode is None:
                    with suppress(ProcessLookupError, ValueError):
                        container.signal(signal.SIGTERM)
                await asyncio.sleep(0.01)
        assert await container.process.wait() in (0, 143)
        assert "The gateway is at" not in container.process.output
