"""The command line: one module for each command, and what they share."""

from __future__ import annotations

import importlib
import logging
import platform
import sys
from importlib import metadata

import click

__all__ = ["lbclient"]

# Each is the command of that name in the module of that name.
_COMMANDS = ("demo", "get", "watch", "register")


class _Commands(click.Group):
    """Imports a command when it is asked for: the demo needs much that the others do not."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - as above
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"lbclient.cli.{cmd_name}"), cmd_name)
        return command


def _versions() -> str:
    try:
        own = metadata.version("lbclient")
    except metadata.PackageNotFoundError:
        own = "(not installed)"
    return f"lbclient {own}, aiohttp {metadata.version('aiohttp')}, Python {platform.python_version()}"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(message=_versions(), version="")
@click.option("-v", "--verbose", is_flag=True, help="Log to standard error what the library does.")
@click.pass_context
def lbclient(context: click.Context, *, verbose: bool) -> None:
    """Client-side load balancing over the endpoints that a registry lists.

    A registry's URL names it and a service in it:

    \b
      etcd://127.0.0.1:2379/services/users/      keys below a prefix; etcds:// for TLS
      consul://127.0.0.1:8500/users?passing=1    a service in Consul; consuls:// for TLS
      dns://users.example:8080                   addresses of a name; srv:// for SRV records
      file:///etc/users.yaml                     a list in JSON or YAML
      static://10.0.0.1:8080,10.0.0.2:8080       no registry at all
    """  # noqa: D301 - click leaves alone what stands below a backspace
    context.obj = verbose
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s" if verbose else "%(message)s",
    )
    if not verbose:
        # The commands tell by themselves which registries and endpoints come and go.
        for name in ("discovery.watcher", "discovery.registrar", "lbclient"):
            logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger("lbclient.sandbox").setLevel(logging.WARNING)
