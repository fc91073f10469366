"""The command `lbclient`, also as `python -m lbclient`."""

from __future__ import annotations

import sys

__all__ = ["main"]

_EXTRA = frozenset({"click", "rich"})


def main() -> None:
    """Run the command line; without its extra say what to install, and exit with 2."""
    try:
        import rich  # noqa: F401, PLC0415 - not needed by every command, but all of the extra or nothing

        from lbclient.cli import lbclient  # noqa: PLC0415 - click comes with the extra
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write("the command line needs: pip install 'lbclient[cli]'\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    lbclient(prog_name="lbclient")


if __name__ == "__main__":
    main()
