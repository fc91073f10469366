"""Server programs out of Debian's packages, unpacked into a cache folder: nothing gets installed."""

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lbclient.sandbox.errors import SandboxError

_logger = logging.getLogger(__name__)

_TIMEOUT = 180.0
_SOURCES = Path("/etc/apt")
_OS_RELEASE = Path("/etc/os-release")


@dataclass(frozen=True, slots=True)
class Package:
    """A package that has a server program of a certain version line.

    Attributes:
        name: The package's name.
        suite: The Debian release to take it from.
        line: Version line of the program, such as "3.5".
        program: The program's file inside of the package.
        description: What to call it in messages.
        libraries: Further packages of the release, with shared libraries that a machine may not have.
    """

    name: str
    suite: str
    line: str
    program: str
    description: str
    libraries: tuple[str, ...] = ()


PACKAGES = {
    "etcd": (
        Package("etcd-server", "trixie", "3.5", "usr/bin/etcd", "etcd 3.5"),
        Package("etcd-server", "bookworm", "3.4", "usr/bin/etcd", "etcd 3.4"),
    ),
    "consul": (Package("consul", "bullseye", "1.8", "usr/bin/consul", "Consul 1.8"),),
    "nsd": (
        Package(
            "nsd",
            "bookworm",
            "4.6",
            "usr/sbin/nsd",
            "NSD 4.6",
            ("libevent-2.1-7", "libfstrm0", "libprotobuf-c1", "libssl3"),
        ),
    ),
}


def cache_folder() -> Path:
    """Return the folder for unpacked packages."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lbclient"


def unpack(package: Package) -> Path:
    """Return the path of the program, downloading its package at the first use.

    Any number of processes may do this at the same time.

    Raises:
        SandboxError: This is not Debian, or the download did not work; the message says which.
    """
    cache = cache_folder()
    folder = cache / f"{package.name}-{package.suite}-{os.uname().machine}"
    program = folder / package.program
    if program.exists():
        return program
    _expect_tools()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _lock(cache / f"{folder.name}.lock"):
            if not program.exists():
                _logger.warning("downloading %s from Debian's packages, about 5 s", package.description)
                _download(package, folder)
    except OSError as error:
        raise SandboxError(str(error)) from error
    return program


def library_folder(package: Package, program: Path) -> Path | None:
    """Return the folder with the shared libraries that were unpacked beside a program; None if it has none."""
    root = program.parents[package.program.count("/")]
    return next(iter(sorted(root.glob("usr/lib/*-linux-*"))), None) if package.libraries else None


def _expect_tools() -> None:
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise SandboxError(f"no {' and no '.join(missing)} here")
    if "debian" not in _os_release().get("ID", ""):
        raise SandboxError("this is not Debian")


def _download(package: Package, folder: Path) -> None:
    """Unpack into a folder beside `folder`, which appears only when it is complete."""
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as name:
        work = Path(name)
        for part in ("state", "cache", "package"):
            (work / part).mkdir()
        configuration = _configuration(work, _source(work, package.suite))
        _run(["apt-get", "-q", "-c", str(configuration), "update"], work)
        names = [package.name, *package.libraries]
        _run(["apt-get", "-q", "-c", str(configuration), "download", *names], work / "package")
        archives = sorted((work / "package").glob("*.deb"))
        if not archives:
            raise SandboxError(f"apt-get downloaded no {package.name}")
        for archive in archives:
            _run(["dpkg", "-x", str(archive), str(work / "unpacked")], work)
        if not (work / "unpacked" / package.program).exists():
            raise SandboxError(f"{archives[0].name} has no {package.program}")
        shutil.rmtree(folder, ignore_errors=True)
        (work / "unpacked").rename(folder)


def _run(argv: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            argv,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SandboxError(f"{argv[0]} {argv[-1]} took longer than {_TIMEOUT:g} s") from error
    if done.returncode:
        raise SandboxError(f"{argv[0]} {argv[-1]} failed: {done.stderr.strip()[-500:]}")


def _configuration(work: Path, source: Path) -> Path:
    """Write apt's configuration: the machine's own (it may have a proxy), but with all its files in `work`."""
    lines = [
        f'Dir::Etc::sourcelist "{source}";',
        'Dir::Etc::sourceparts "-";',
        'Dir::Etc::preferences "/dev/null";',
        'Dir::Etc::preferencesparts "/dev/null";',
        f'Dir::State "{work}/state";',
        'Dir::State::status "/dev/null";',
        f'Dir::Cache "{work}/cache";',
        'Acquire::Languages "none";',
        'Acquire::Retries "2";',
        # Hooks that the machine has for its own package lists.
        "#clear APT::Update::Pre-Invoke;",
        "#clear APT::Update::Post-Invoke;",
        "#clear APT::Update::Post-Invoke-Success;",
    ]
    if os.geteuid() == 0:
        # The user that apt switches to may not be able to enter root's cache folder.
        lines.append('APT::Sandbox::User "root";')
    path = work / "apt.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _source(work: Path, suite: str) -> Path:
    """Write a copy of the machine's own source of Debian's main archive, for `suite` only."""
    codename = _os_release().get("VERSION_CODENAME", "")
    names = {codename, "stable", "oldstable", "testing", "unstable", "sid"} - {""}
    for path in sorted((_SOURCES / "sources.list.d").glob("*.sources")):
        for stanza in path.read_text(encoding="utf-8").split("\n\n"):
            if lines := _stanza(stanza, names, suite):
                return _written(work / "debian.sources", lines)
    for path in (_SOURCES / "sources.list", *sorted((_SOURCES / "sources.list.d").glob("*.list"))):
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if rewritten := _one_line(line, names, suite):
                    return _written(work / "debian.list", [rewritten])
    raise SandboxError(f"no source of Debian's main archive found below {_SOURCES}")


def _written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _stanza(stanza: str, names: set[str], suite: str) -> list[str]:
    """Return a deb822 stanza for another suite; nothing if it is not of the main archive."""
    lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
    fields = {key.strip().lower(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    if (
        "deb" not in fields.get("types", [])
        or not names & set(fields.get("suites", []))
        or "main" not in fields.get("components", [])
        or fields.get("enabled", ["yes"]) == ["no"]
    ):
        return []
    changed = {"types": "Types: deb", "suites": f"Suites: {suite}", "components": "Components: main"}
    return [changed.get(line.partition(":")[0].strip().lower(), line) for line in lines]


def _one_line(line: str, names: set[str], suite: str) -> str | None:
    """Return a line of sources.list for another suite; None if it is not of the main archive."""
    words = line.partition("#")[0].split()
    if not words or words[0] != "deb":
        return None
    # The options in brackets may have spaces of their own.
    end = next((i for i, word in enumerate(words) if word.endswith("]")), 0) if "[" in line else 0
    rest = words[end + 1 :]
    if len(rest) < 3 or rest[1] not in names or "main" not in rest[2:]:  # noqa: PLR2004 - URI, suite, component
        return None
    return " ".join([*words[: end + 1], rest[0], suite, "main"])


def _os_release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        pairs = (line.partition("=") for line in _OS_RELEASE.read_text(encoding="utf-8").splitlines())
        return {key: value.strip('"') for key, _, value in pairs}
    return {}


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    deadline = time.monotonic() + 2 * _TIMEOUT
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SandboxError(f"another process holds {path}") from None
                time.sleep(0.05)
        yield
