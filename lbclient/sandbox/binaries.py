"""Finds a server program: on PATH, as a Docker image, or in Debian's packages."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lbclient.sandbox import containers, debian
from lbclient.sandbox.containers import Container
from lbclient.sandbox.errors import SandboxError, ServerUnavailable
from lbclient.sandbox.local import LocalServer, environment

Program = Literal["etcd", "consul", "nsd"]

ENVIRONMENT = {"etcd": "LBCLIENT_ETCD", "consul": "LBCLIENT_CONSUL"}

_IMAGES = {
    "etcd": ("quay.io/coreos/etcd:v3.5.21", "quay.io/coreos/etcd:v3.4.37"),
    "consul": ("hashicorp/consul:1.20",),
}
_IN_IMAGE = {"etcd": "/usr/local/bin/etcd", "consul": "/bin/consul"}
_VERSION_COMMANDS = {"etcd": ("--version",), "consul": ("version",), "nsd": ("-v",)}
_VERSION = re.compile(r"v?(\d+\.\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Launcher:
    """A way to run a server program.

    Attributes:
        program: Which one.
        version: Its version, such as "3.5.21" (some images tell two numbers only).
        way: "PATH", "Docker" or "Debian".
        path: The program's file, None with Docker.
        image: Docker's image, None without.
        libraries: Folder with shared libraries for the program, None if the machine has them.
    """

    program: Program
    version: str
    way: Literal["PATH", "Docker", "Debian"]
    path: Path | None = None
    image: str | None = None
    libraries: Path | None = None

    def server(self, network: str | None = None) -> LocalServer | Container:
        """Return a server that is ready to be started.

        Args:
            network: For containers that must see each other.
        """
        if self.path is not None:
            return LocalServer(self.path, self.libraries)
        return Container(str(self.image), _IN_IMAGE[self.program], network)

    def at_least(self, *numbers: int) -> bool:
        """Return whether the version is this one or a later one."""
        return tuple(int(number) for number in self.version.split(".")) >= numbers


def find(program: Program, version: str | None = None) -> Launcher:
    """Find a way to run a server; it may take seconds (a download) and blocks.

    Args:
        program: Which server.
        version: The version line wanted, such as "3.4"; None is any, preferably the newest.

    Raises:
        ServerUnavailable: There is none; the message says what to install or set.
    """
    reasons: list[str] = []
    for way in (_on_path, _in_docker, _in_debian):
        try:
            return way(program, version)
        except SandboxError as error:
            reasons.append(str(error))
    raise ServerUnavailable(_advice(program, version, reasons))


def matches(version: str, line: str | None) -> bool:
    """Return whether a version such as "3.5.21" is of a line such as "3.5"; everything is of None."""
    return line is None or version == line or version.startswith(f"{line}.")


def _on_path(program: Program, line: str | None) -> Launcher:
    path = shutil.which(program)
    if path is None:
        raise SandboxError(f"there is no {program} on PATH")
    version = _version(program, Path(path))
    if not matches(version, line):
        raise SandboxError(f"{path} is {version}, not {line}")
    return Launcher(program, version, "PATH", path=Path(path).absolute())


def _in_docker(program: Program, line: str | None) -> Launcher:
    if program not in _IMAGES:
        raise SandboxError(f"{program} is not run in Docker: its files are written from here")
    problem = containers.engine_problem()
    if problem is not None:
        raise SandboxError(problem)
    for image in _IMAGES[program]:
        version = image.rpartition(":")[2].removeprefix("v")
        if matches(version, line):
            containers.pull(image)
            return Launcher(program, version, "Docker", image=image)
    raise SandboxError(f"no image of {program} {line} is pinned here")


def _in_debian(program: Program, line: str | None) -> Launcher:
    for package in debian.PACKAGES[program]:
        if line is None or matches(line, package.line) or matches(package.line, line):
            path = debian.unpack(package)
            libraries = debian.library_folder(package, path)
            version = _version(program, path, libraries)
            return Launcher(program, version, "Debian", path=path, libraries=libraries)
    raise SandboxError(f"no package with {program} {line} is known here")


def _version(program: Program, path: Path, libraries: Path | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            [path, *_VERSION_COMMANDS[program]],
            env=environment(libraries),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"{path} does not run: {error}") from error
    found = _VERSION.search(done.stdout or done.stderr)
    if done.returncode or found is None:
        raise SandboxError(f"{path} does not tell its version: {(done.stderr or done.stdout).strip()[-300:]}")
    return found[1]


def _advice(program: Program, line: str | None, reasons: list[str]) -> str:
    name = f"{program} {line}" if line else program
    ways = [f"put the program {program} on PATH", "on Debian, make its package archive reachable"]
    if program in ENVIRONMENT:
        ways.insert(0, f"set {ENVIRONMENT[program]} to the address of a running one (host:port)")
    if program in _IMAGES:
        ways.insert(-1, "start a Docker engine")
    tried = "".join(f"\n  - {reason}" for reason in reasons)
    advice = "".join(f"\n  {number}. {way}" for number, way in enumerate(ways, 1))
    return f"no {name} to run here. One of these helps:{advice}\nWhat was tried:{tried}"
