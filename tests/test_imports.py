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
    "discovery.news": "",
    "discovery.published": "news snapshot",
    "discovery.watcher": "backoff cache endpoint hold published snapshot source",
    "discovery.records.records": "endpoint",
    "discovery.records.fields": "endpoint records.records",
    "discovery.records.json_formats": "endpoint records.fields records.records",
    "discovery.records.formats": "endpoint records.fields records.json_formats records.records",
    "discovery.records": "records.formats records.records",
    "discovery.consul.conventions": "endpoint records.fields records.records",
    "discovery.tls": "",
    "discovery.connection": "endpoint source tls",
    "discovery.etcd.wire": "source",
    "discovery.etcd.auth": "etcd.wire source",
    "discovery.etcd.stream": "connection etcd.auth etcd.wire source",
    "discovery.etcd.client": "connection etcd.auth etcd.stream etcd.wire source tls",
    "discovery.etcd.view": "etcd.wire records.records source",
    "discovery.etcd.source": (
        "connection endpoint etcd.auth etcd.client etcd.stream etcd.view etcd.wire records.fields "
        "records.formats records.records source tls"
    ),
    "discovery.etcd": "etcd.source",
    "discovery.consul.agent": "connection source tls",
    "discovery.consul.client": "connection consul.agent source tls",
    "discovery.consul.environment": "connection source tls",
    "discovery.consul.elements": "",
    "discovery.consul.follower": "consul.client source",
    "discovery.consul.source": (
        "connection consul.client consul.conventions consul.elements consul.environment "
        "consul.follower endpoint records.fields records.records source tls"
    ),
    "discovery.consul": "consul.source",
    "discovery.combined": "connection endpoint snapshot source watcher",
    "discovery.dns.client": "connection endpoint source tls",
    "discovery.dns.lookup": "dns.client endpoint source",
    "discovery.dns.source": "connection dns.client dns.lookup endpoint source tls",
    "discovery.dns": "dns.source",
    "discovery.file.entries": "endpoint",
    "discovery.file.json_text": "file.entries",
    "discovery.file.yaml_text": "file.entries",
    "discovery.file.source": "connection endpoint file.entries file.json_text file.yaml_text source",
    "discovery.file": "file.source",
    "discovery.url": "combined consul dns endpoint etcd file source tls",
    "discovery.registrar.health": "",
    "discovery.registrar.standing": "news",
    "discovery.registrar.registration": "endpoint source",
    "discovery.registrar.etcd": "endpoint etcd.client etcd.wire registrar.registration source",
    "discovery.registrar.consul": "consul.client endpoint registrar.registration",
    "discovery.registrar.upkeep": "backoff endpoint registrar.registration registrar.standing source",
    "discovery.registrar.registrar": (
        "backoff connection consul endpoint etcd registrar.consul registrar.etcd registrar.health "
        "registrar.registration registrar.standing registrar.upkeep url"
    ),
    "discovery.registrar": "registrar.registrar",
    "lbclient.errors": "",
    "lbclient.hedging.latencies": "",
    "lbclient.load_report": "",
    "lbclient.metrics": "",
    "lbclient.options": "",
    "lbclient.passage": "",
    "lbclient.policies.keys": "",
    "lbclient.retrying.file_bodies": "",
    "lbclient.retrying.pushback": "",
    "lbclient.retrying.replay": "",
    "lbclient.routing.lines": "",
    "lbclient.routing.slow_start": "",
    "lbclient.routing.subset": "discovery",
    "lbclient.routing.where": "discovery",
    "lbclient.health.health_check": "options",
    "lbclient.hedging.hedge": "options",
    "lbclient.hops": "passage",
    "lbclient.limits.limits": "options",
    "lbclient.load_reporter": "load_report options",
    "lbclient.outcome": "errors",
    "lbclient.retrying.budget": "options",
    "lbclient.retrying.resending": "retrying.file_bodies",
    "lbclient.health": "health.health_check",
    "lbclient.health.state": "health.health_check",
    "lbclient.limits.throttle": "options outcome",
    "lbclient.retrying.retry": "options outcome retrying.budget retrying.replay",
    "lbclient.tally": "outcome",
    "lbclient.limits": "limits.limits limits.throttle",
    "lbclient.node": "tally discovery",
    "lbclient.retrying.retries": "outcome retrying.budget retrying.retry",
    "lbclient.attempt": "errors node outcome",
    "lbclient.call": "node",
    "lbclient.ejection.finding": "node",
    "lbclient.health.target": "health.health_check health.state node",
    "lbclient.policies.drawing": "node",
    "lbclient.policies.loads": "node",
    "lbclient.policies.ring": "node",
    "lbclient.policies.table": "node",
    "lbclient.policies.turns": "node",
    "lbclient.retrying": "retrying.budget retrying.pushback retrying.retries retrying.retry",
    "lbclient.routing.portion": "node",
    "lbclient.routing.priorities": "node",
    "lbclient.routing.warm_up": "node routing.slow_start",
    "lbclient.side_requests": "node",
    "lbclient.drain": "attempt errors node",
    "lbclient.ejection.probes": "call node",
    "lbclient.health.asking": "health.health_check health.state node outcome side_requests",
    "lbclient.hedging.entrant": "attempt outcome",
    "lbclient.hedging.raced": "attempt call node outcome retrying",
    "lbclient.limits.lifetimes": "attempt limits.limits node",
    "lbclient.limits.slots": "attempt call limits.limits",
    "lbclient.policies.bounded_load": "call node",
    "lbclient.policies.deadlines": "node policies.turns",
    "lbclient.policies.policy": "call node",
    "lbclient.policies.probe_pool": "node policies.loads",
    "lbclient.policies.sampling": "call node options policies.drawing policies.loads",
    "lbclient.policies.smooth": "node policies.turns",
    "lbclient.routing.announcer": "routing.lines routing.portion",
    "lbclient.routing.zones": "node routing.portion",
    "lbclient.timed": "attempt outcome",
    "lbclient.tried": "attempt",
    "lbclient.hedging.race": (
        "attempt call hedging.entrant hedging.hedge hedging.latencies hedging.raced outcome passage retrying tried"
    ),
    "lbclient.policies.hashing": "call node options policies.bounded_load policies.keys",
    "lbclient.policies.least_request": "call node options policies.loads policies.smooth policies.turns",
    "lbclient.policies.prequal": (
        "call load_report node options policies.drawing policies.loads policies.probe_pool policies.sampling"
    ),
    "lbclient.policies.rotation": "call node options policies.deadlines policies.smooth policies.turns",
    "lbclient.policies.sticky": "call node options policies.keys policies.policy policies.sampling",
    "lbclient.routing.routing": (
        "node routing.portion routing.priorities routing.subset routing.where routing.zones discovery"
    ),
    "lbclient.websocket": "tried",
    "lbclient.hedging": "hedging.hedge hedging.race hedging.raced",
    "lbclient.policies.maglev": "policies.hashing policies.keys policies.table",
    "lbclient.policies.ring_hash": "policies.hashing policies.keys policies.ring",
    "lbclient.routing": (
        "routing.announcer routing.lines routing.portion routing.routing routing.slow_start "
        "routing.subset routing.warm_up"
    ),
    "lbclient.ejection.ejection": "options routing",
    "lbclient.health.checker": (
        "health.asking health.health_check health.state health.target node routing side_requests"
    ),
    "lbclient.policies.names": (
        "policies.least_request policies.loads policies.maglev policies.policy policies.prequal "
        "policies.ring_hash policies.rotation policies.sampling policies.sticky"
    ),
    "lbclient.ejection.statistics": "ejection.ejection ejection.finding node",
    "lbclient.policies": (
        "policies.keys policies.least_request policies.loads policies.maglev policies.names "
        "policies.policy policies.prequal policies.ring_hash policies.rotation policies.sampling "
        "policies.sticky"
    ),
    "lbclient.ejection.outlier_detector": (
        "attempt ejection.ejection ejection.finding ejection.probes ejection.statistics node outcome routing tally"
    ),
    "lbclient.probing": "load_report node policies side_requests",
    "lbclient.route": "call node policies routing",
    "lbclient.ejection": "ejection.ejection ejection.outlier_detector",
    "lbclient.routes": "call node policies route routing",
    "lbclient.balancer": "attempt call ejection node outcome policies route routes routing discovery",
    "lbclient.settings": "ejection health hedging limits options outcome retrying routing",
    "lbclient.inquiries": (
        "balancer health.checker health.health_check node options policies probing side_requests"
    ),
    "lbclient.refusals": "balancer errors limits.limits limits.throttle discovery",
    "lbclient.service": (
        "attempt balancer call errors hedging inquiries limits.lifetimes limits.slots limits.throttle "
        "node outcome passage policies refusals retrying route settings discovery"
    ),
    "lbclient.waiting": "attempt call passage refusals service tried",
    "lbclient.exchange": (
        "attempt errors outcome passage retrying.file_bodies retrying.resending service timed tried waiting"
    ),
    "lbclient.transport": (
        "drain ejection errors exchange health hedging hops limits options outcome passage policies "
        "retrying.resending routing service settings discovery"
    ),
    "lbclient.session": (
        "ejection errors health hedging limits options outcome passage policies retrying routing "
        "settings transport websocket discovery"
    ),
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
    optional = {"etcd3", "consul", "dns", "yaml", "click", "rich", "requests", "prometheus_client"}
    assert not loaded & (optional | {"lbclient.sandbox", "lbclient.cli"})
