"""Who may import whom: a new edge is a decision, and it is made in these tables first."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Which part of the project may know which.
PARTS = {
    "discovery": {"discovery"},
    "lbclient": {"lbclient", "discovery"},
    "lbclient.sandbox": {"lbclient.sandbox"},
    "lbclient.cli": {"lbclient.cli", "lbclient.sandbox", "lbclient", "discovery"},
}

# The straight line, module by module.
MODULES = {
    "discovery.endpoint": "",
    "discovery.backoff": "",
    "discovery.source": "endpoint",
    "discovery.snapshot": "endpoint",
    "discovery.hold": "endpoint",
    "discovery.cache": "endpoint snapshot",
    "discovery.published": "snapshot",
    "discovery.watcher": "backoff cache endpoint hold published snapshot source",
    "discovery.records": "endpoint",
    "discovery.fields": "endpoint",
    "discovery.formats_json": "endpoint fields",
    "discovery.formats": "endpoint fields formats_json records",
    "discovery.consul_records": "endpoint fields records",
    "discovery.tls": "",
    "discovery.connection": "endpoint source tls",
    "discovery.etcd_wire": "source",
    "discovery.etcd_auth": "etcd_wire source",
    "discovery.etcd_client": "connection etcd_auth etcd_wire source tls",
    "discovery.etcd_view": "etcd_wire records source",
    "discovery.etcd": (
        "connection endpoint etcd_auth etcd_client etcd_view etcd_wire fields formats records source tls"
    ),
    "discovery.consul_agent": "connection source tls",
    "discovery.consul_client": "connection consul_agent source tls",
    "discovery.consul_environment": "connection source tls",
    "discovery.consul_json": "",
    "discovery.consul_follow": "consul_client source",
    "discovery.consul": (
        "connection consul_client consul_environment consul_follow consul_json consul_records "
        "endpoint fields records source tls"
    ),
    "discovery.combined": "connection endpoint snapshot source watcher",
    "discovery.dns_client": "connection endpoint source tls",
    "discovery.dns_lookup": "dns_client endpoint source",
    "discovery.dns": "connection dns_client dns_lookup endpoint source tls",
    "discovery.file_entries": "endpoint",
    "discovery.file_json": "file_entries",
    "discovery.file_yaml": "file_entries",
    "discovery.file": "connection endpoint file_entries file_json file_yaml source",
    "discovery.url": "combined consul dns endpoint etcd file source tls",
    "discovery.health": "",
    "discovery.standing": "",
    "discovery.registration": "endpoint source",
    "discovery.etcd_registration": "endpoint etcd etcd_client etcd_wire registration source",
    "discovery.consul_registration": "consul consul_client endpoint registration",
    "discovery.upkeep": "backoff endpoint registration source standing",
    "discovery.registrar": (
        "backoff connection consul consul_registration endpoint etcd etcd_registration health "
        "registration standing upkeep url"
    ),
    "lbclient.errors": "",
    "lbclient.outcome": "errors",
    "lbclient.node": "errors outcome discovery",
    "lbclient.policy": "node",
    "lbclient.outlier": "node outcome",
    "lbclient.balancer": "node outcome outlier policy discovery",
    "lbclient.service": "balancer errors node outcome discovery",
    "lbclient.drain": "node",
    "lbclient.transport": "balancer drain errors node outcome outlier policy service discovery",
    "lbclient.session": "outlier policy transport discovery",
}

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("discovery", "lbclient")
    for path in (ROOT / package).rglob("*.py")
}


def imports(name: str) -> set[str]:
    """The project's own modules that a module imports, in function bodies too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    modules = found & FILES.keys()
    # `from package import module` needs the module only, `from package import name` the package.
    return {m for m in modules if not any(other.startswith(f"{m}.") for other in modules)} - {name}


def part_of(module: str) -> str:
    return max((part for part in PARTS if f"{module}.".startswith(f"{part}.")), key=len)


@pytest.mark.parametrize("name", sorted(FILES))
def test_parts_know_only_what_they_may(name: str) -> None:
    if name == "lbclient.__main__":
        return  # the door to the command line
    assert {part_of(module) for module in imports(name)} <= PARTS[part_of(name)]


@pytest.mark.parametrize("name", sorted(set(FILES) - {"discovery", "lbclient", "lbclient.__main__"}))
def test_modules_import_exactly_what_the_table_says(name: str) -> None:
    package = part_of(name)
    if package in ("lbclient.cli", "lbclient.sandbox"):
        assert name not in MODULES
        return
    allowed = {m if m == "discovery" else f"{package}.{m}" for m in MODULES[name].split()}
    assert imports(name) == allowed


def test_there_are_no_cycles() -> None:
    graph = {name: imports(name) for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_importing_the_library_imports_no_optional_package() -> None:
    code = "import sys, lbclient, discovery; print(*sys.modules)"
    command = [sys.executable, "-W", "error", "-c", code]
    loaded = set(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    optional = {"etcd3", "consul", "dns", "yaml", "click", "rich", "requests"}
    assert not loaded & (optional | {"lbclient.sandbox", "lbclient.cli"})
