import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from lbclient.sandbox import Process, SandboxError, free_port

SLEEPER = [sys.executable, "-S", "-c", "import time; print('ready', flush=True); time.sleep(60)"]


async def poll(check: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A child that nobody has waited for yet is still there as a zombie.
        return sys.platform != "linux" or state(pid) != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


async def test_kill_waits_for_the_end(tmp_path: Path) -> None:
    process = Process()
    await process.start(SLEEPER, log=tmp_path / "log")
    pid = process.pid
    assert process.running
    await process.kill()
    assert not process.running
    assert process.returncode == -signal.SIGKILL
    assert not exists(pid)
    await process.kill()


async def test_restart_uses_the_same_arguments(tmp_path: Path) -> None:
    process = Process()
    await process.start(SLEEPER, log=tmp_path / "log")
    first = process.pid
    await process.restart()
    assert process.running
    assert process.pid != first
    assert not exists(first)
    await process.until(lambda: process.output() or None, what="output", timeout=5)
    assert process.output() == "ready\n"
    await process.kill()


async def test_a_paused_process_can_go_on_and_be_killed(tmp_path: Path) -> None:
    process = Process()
    await process.start(SLEEPER, log=tmp_path / "log")
    await process.pause()
    if sys.platform == "linux":
        assert state(process.pid) == "T"
        await process.resume()
        await poll(lambda: state(process.pid) != "T")
        await process.pause()
    assert process.running
    await process.kill()
    assert not process.running


async def test_terminate_kills_what_does_not_listen(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    process = Process()
    await process.start([sys.executable, "-S", "-c", deaf], log=tmp_path / "log")
    await process.until(lambda: process.output() or None, what="output", timeout=5)
    assert await process.terminate(0.05) is False
    assert process.returncode == -signal.SIGKILL
    await process.restart()
    await process.kill()


async def test_an_early_death_is_told_with_the_last_lines(tmp_path: Path) -> None:
    process = Process()
    await process.start([sys.executable, "-S", "-c", "import sys; sys.exit('bad port')"], log=tmp_path / "log")
    with pytest.raises(SandboxError, match=r"exited with 1 before its birthday\nbad port"):
        await process.until(lambda: None, what="its birthday", timeout=5)
    await process.kill()


async def test_until_gives_up(tmp_path: Path) -> None:
    process = Process()
    await process.start(SLEEPER, log=tmp_path / "log")
    with pytest.raises(SandboxError, match=r"no miracle after 0\.05 s"):
        await process.until(lambda: None, what="miracle", timeout=0.05)
    await process.kill()


async def test_what_was_never_started_says_so(tmp_path: Path) -> None:
    process = Process()
    with pytest.raises(SandboxError, match="never started"):
        await process.restart()
    with pytest.raises(SandboxError, match="never started"):
        _ = process.pid
    await process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
async def test_children_do_not_outlive_a_parent_killed_with_9(tmp_path: Path) -> None:
    script = f"""
        import asyncio, sys, time
        from pathlib import Path
        from lbclient.sandbox import Process
        async def main():
            process = Process()
            await process.start(["sleep", "60"], log=Path({str(tmp_path / "log")!r}))
            print(process.pid, flush=True)
            time.sleep(60)
        asyncio.run(main())
    """
    root = str(Path(__file__).parents[2])
    with subprocess.Popen(  # noqa: ASYNC220 - has to be an ordinary parent
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        assert exists(child)
        parent.kill()
        await poll(lambda: not exists(child), 20)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
async def test_children_do_not_outlive_a_parent_that_is_killed_while_they_start(tmp_path: Path) -> None:
    script = f"""
        import asyncio, os
        from pathlib import Path
        from lbclient.sandbox import Process
        async def main():
            process = Process()
            await process.start(["sleep", "60"], log=Path({str(tmp_path / "log")!r}))
            os.write(1, b"%d\\n" % process.pid)
            os.kill(os.getpid(), 9)
        # On one core the child has not gone far by then.
        os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
        for _ in range(10):
            if not (parent := os.fork()):
                asyncio.run(main())
            os.waitpid(parent, 0)
    """
    root = str(Path(__file__).parents[2])
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        check=True,
    )
    children = [int(line) for line in done.stdout.splitlines()]
    assert len(children) == 10
    await poll(lambda: not any(map(exists, children)), 20)


async def test_a_forgotten_process_is_killed(tmp_path: Path) -> None:
    process = Process()
    await process.start(SLEEPER, log=tmp_path / "log")
    pid = process.pid
    del process
    await poll(lambda: not exists(pid))


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    for port in ports[:5]:
        with socket.socket() as sock:
            # As every server does: connections of an earlier one may still be in TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))


async def test_starting_twice_is_refused(tmp_path: Path) -> None:
    process = Process()
    await process.start(SLEEPER, log=tmp_path / "log")
    with pytest.raises(SandboxError, match="runs already"):
        await process.start(SLEEPER, log=tmp_path / "log")
    await process.kill()


def test_it_can_be_used_from_another_event_loop(tmp_path: Path) -> None:
    process = Process()
    asyncio.run(process.start(SLEEPER, log=tmp_path / "log"))
    assert process.running
    asyncio.run(process.restart())
    assert process.running
    asyncio.run(process.kill())
    assert not process.running
