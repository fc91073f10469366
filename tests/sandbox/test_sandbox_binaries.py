"""Where the server programs come from, with stand-ins for the tools that would bring them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbclient.sandbox import EtcdCluster, SandboxError, ServerUnavailable, debian
from lbclient.sandbox.binaries import find
from lbclient.sandbox.consul import ConsulServer
from lbclient.sandbox.server import Server


class Machine:
    """A PATH with nothing but stand-ins, and a Debian of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.apt = folder / "apt"
        (self.apt / "sources.list.d").mkdir(parents=True)
        self.os_release = folder / "os-release"
        self.os_release.write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
        self.cache = folder / "cache"
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))
        monkeypatch.setattr(debian, "_SOURCES", self.apt)
        monkeypatch.setattr(debian, "_OS_RELEASE", self.os_release)

    def add(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\nPATH=/bin:/usr/bin\necho "{name} $*" >> {self.log}\n{script}\n')
        path.chmod(0o755)

    def add_apt(self, program: str) -> None:
        """Have packages with one program, which tells a version; every download takes a moment."""
        self.add("apt-get", 'case "$*" in *download*) sleep 0.2; : > some.deb;; esac')
        content = "'#!/bin/sh\\necho v1.2.3\\n'"
        self.add("dpkg", f'mkdir -p "$3/usr/bin"; printf {content} > "$3/{program}"; chmod 755 "$3/{program}"')

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_nothing_available_says_what_would_help(machine: Machine) -> None:
    with pytest.raises(ServerUnavailable) as caught:
        find("etcd", "3.5")
    message = str(caught.value)
    for part in ("no etcd 3.5 to run here", "LBCLIENT_ETCD", "on PATH", "Docker engine", "on Debian"):
        assert part in message
    for reason in ("no etcd on PATH", "no docker on PATH", "no apt-get and no dpkg here"):
        assert reason in message


def test_a_program_on_path_is_taken(machine: Machine) -> None:
    machine.add("etcd", "echo 'etcd Version: 3.5.16'; echo 'Git SHA: 1.2.3'")
    machine.add("consul", "echo 'Consul v1.20.1'; echo 'Revision 7'")
    etcd = find("etcd", "3.5")
    assert (etcd.way, etcd.version, etcd.path) == ("PATH", "3.5.16", machine.bin / "etcd")
    assert find("consul").version == "1.20.1"
    assert machine.calls() == ["etcd --version", "consul version"]


@pytest.mark.parametrize("script", ["echo 'etcd Version: 3.3.5'", "echo broken >&2; exit 1", "echo hello"])
def test_an_unsuitable_program_on_path_is_passed_over(machine: Machine, script: str) -> None:
    machine.add("etcd", script)
    with pytest.raises(ServerUnavailable, match=str(machine.bin / "etcd")):
        find("etcd", "3.5")


def test_docker_is_used_when_its_engine_runs(machine: Machine) -> None:
    machine.add("docker", '[ "$1" != image ]')
    assert find("etcd").image == "quay.io/coreos/etcd:v3.5.21"
    old = find("etcd", "3.4")
    assert (old.way, old.version, old.image) == ("Docker", "3.4.37", "quay.io/coreos/etcd:v3.4.37")
    assert find("consul").image == "hashicorp/consul:1.20"
    assert "docker pull --quiet hashicorp/consul:1.20" in machine.calls()


@pytest.mark.parametrize("script", ["exit 1", '[ "$1" = info ]'])
def test_docker_without_engine_or_image_is_passed_over(machine: Machine, script: str) -> None:
    machine.add("docker", script)
    with pytest.raises(ServerUnavailable, match=r"docker (info|pull)"):
        find("etcd")


async def test_a_cluster_in_docker(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_server: Server) -> None:
        return

    monkeypatch.setattr(Server, "wait_healthy", at_once)
    machine.add("docker", '[ "$1" = inspect ] && echo true; true')
    cluster = await EtcdCluster.start(2, "3.5")
    runs = [call for call in machine.calls() if call.startswith("docker run")]
    network = next(call for call in machine.calls() if "network create" in call).split()[-1]
    assert len(runs) == 2
    names = [run.partition("--name ")[2].split()[0] for run in runs]
    for index, (run, name, address) in enumerate(zip(runs, names, cluster.addresses, strict=True)):
        port = address.partition(":")[2]
        assert run.startswith(
            f"docker run --detach --name {name} --label lbclient.sandbox --network {network} "
            f"--publish 127.0.0.1:{port}:{port} --entrypoint /usr/local/bin/etcd "
            f"quay.io/coreos/etcd:v3.5.21 --name=m{index} "
        )
        assert f"--listen-client-urls=http://0.0.0.0:{port} " in run
        assert f"--advertise-client-urls=http://127.0.0.1:{port} " in run
        assert f"--initial-cluster=m0=http://{names[0]}:" in run
        assert f",m1=http://{names[1]}:" in run
    machine.log.unlink()
    await cluster.kill(1)
    await cluster.pause(0)
    await cluster.resume(0)
    await cluster.restart(0)
    await cluster.stop()
    done = [call for call in machine.calls() if "inspect" not in call]
    assert done[:5] == [
        f"docker kill --signal KILL {names[1]}",
        f"docker pause {names[0]}",
        f"docker unpause {names[0]}",
        f"docker kill --signal KILL {names[0]}",
        f"docker start {names[0]}",
    ]
    assert sorted(done[5:7]) == sorted(f"docker rm --force --volumes {name}" for name in names)
    assert done[7:] == [f"docker network rm {network}"]


async def test_consul_in_docker_and_its_failure(machine: Machine) -> None:
    machine.add("docker", 'case "$1" in run) echo "port is taken" >&2; exit 125;; esac')
    with pytest.raises(SandboxError, match="docker run: port is taken"):
        await ConsulServer.start()
    run, remove = machine.calls()[-2:]
    assert "--entrypoint /bin/consul hashicorp/consul:1.20 agent -hcl {" in run
    assert '"client_addr": "0.0.0.0"' in run
    assert '"grpc_tls": -1' in run
    assert remove.startswith("docker rm --force --volumes lbclient-")


DEB822 = """\
# the archive
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main
"""


def test_debian_is_asked_for_its_main_archive_only(machine: Machine) -> None:
    machine.add_apt("usr/bin/consul")
    (machine.apt / "sources.list.d" / "a.sources").write_text("Types: deb\nURIs: x\nSuites: nodistro\n")
    (machine.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    launcher = find("consul")
    assert (launcher.way, launcher.version) == ("Debian", "1.2.3")
    assert launcher.path == machine.cache / "lbclient" / f"consul-bullseye-{os.uname().machine}" / "usr/bin/consul"
    update, download, unpack = machine.calls()
    assert update.endswith("update")
    assert download.endswith("download consul")
    assert unpack.startswith("dpkg -x ")
    assert find("consul") == launcher
    assert len(machine.calls()) == 3
    assert sorted(path.name for path in (machine.cache / "lbclient").iterdir()) == [
        launcher.path.parents[2].name,
        f"{launcher.path.parents[2].name}.lock",
    ]


def test_sources_are_rewritten(machine: Machine, tmp_path: Path) -> None:
    (machine.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    assert debian._source(tmp_path, "trixie").read_text() == (
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: trixie\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_old_style_sources_are_rewritten(machine: Machine, tmp_path: Path) -> None:
    (machine.apt / "sources.list").write_text(
        "# deb http://no.test/debian bookworm main\n"
        "deb-src http://mirror.test/debian bookworm main\n"
        "deb http://mirror.test/debian-security bookworm-security main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian bookworm main contrib # here\n"
    )
    source = debian._source(tmp_path, "trixie")
    assert source.suffix == ".list"
    assert source.read_text() == "deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian trixie main\n"


def test_no_source_of_debian_is_told(machine: Machine) -> None:
    machine.add_apt("usr/bin/consul")
    with pytest.raises(ServerUnavailable, match="no source of Debian's main archive"):
        find("consul")


def test_another_distribution_is_not_touched(machine: Machine) -> None:
    machine.add_apt("usr/bin/consul")
    machine.os_release.write_text("ID=ubuntu\nVERSION_CODENAME=noble\n")
    with pytest.raises(ServerUnavailable, match="this is not Debian"):
        find("consul")
    assert machine.calls() == []


def test_a_failing_download_is_told_and_leaves_nothing(machine: Machine) -> None:
    machine.add("apt-get", "echo 'E: no network' >&2; exit 100")
    machine.add("dpkg", "")
    (machine.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    with pytest.raises(ServerUnavailable, match="apt-get update failed: E: no network"):
        find("consul")
    assert [path.suffix for path in (machine.cache / "lbclient").iterdir()] == [".lock"]


def test_several_processes_download_once(machine: Machine) -> None:
    machine.add_apt("usr/bin/consul")
    (machine.apt / "sources.list.d" / "debian.sources").write_text(DEB822)
    script = (
        "import sys; from pathlib import Path; from lbclient.sandbox import debian\n"
        "debian._SOURCES, debian._OS_RELEASE = map(Path, sys.argv[1:])\n"
        "from lbclient.sandbox.binaries import find; print(find('consul').version)\n"
    )
    argv = [sys.executable, "-c", script, str(machine.apt), str(machine.os_release)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    children = [subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [child.communicate()[0] for child in children] == ["1.2.3\n"] * 3
    assert len([call for call in machine.calls() if "download" in call]) == 1
