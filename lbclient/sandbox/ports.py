"""Free TCP ports on loopback."""

import contextlib
import os
import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"

_LOWEST = 10_000
_ATTEMPTS = 200
_given: set[int] = set()
# Seeded apart from the module-level generator: a test that seeds `random` gets different ports all the same.
_random = random.Random(os.urandom(8))


def listening_socket(port: int = 0, *, backlog: int = 1024) -> socket.socket:
    """Listen on a loopback port; 0 picks one that this process was not given before.

    Raises:
        OSError: The port is taken.
    """
    if not port:
        return _pick(backlog)
    sock = _bound(port)
    try:
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    sock.settimeout(0)
    return sock


def free_port() -> int:
    """Return a loopback port that nobody listens on; the same one is never returned twice."""
    with _pick(1) as sock:
        return int(sock.getsockname()[1])


def _pick(backlog: int) -> socket.socket:
    first, last = _range()
    for _ in range(_ATTEMPTS):
        port = _random.randint(first, last)
        if port in _given:
            continue
        with contextlib.suppress(OSError):
            sock = listening_socket(port, backlog=backlog)
            _given.add(port)
            return sock
    raise OSError(f"no free port on {LOOPBACK} between {first} and {last}")


def _range() -> tuple[int, int]:
    """Return the ports to choose from.

    Ports of outgoing connections are left out where the kernel tells them: a server that was stopped for a
    while could not have its port back if a connection took it meanwhile, and a client that keeps trying such a
    port can end up connected to itself.
    """
    try:
        ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        lowest = int(ephemeral.split()[0])
    except (OSError, ValueError, IndexError):
        lowest = 32_768
    return (_LOWEST, lowest - 1) if lowest > 2 * _LOWEST else (_LOWEST, 65_535)


def _bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Connections of the previous server in TIME_WAIT must not keep the next one from its port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        raise
    return sock
