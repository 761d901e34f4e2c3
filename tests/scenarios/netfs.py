"""The netfs and its readers: started here, done by another process, their end waited for.

That process is `netfs_linux` (EROFS, mounted by fsid) or `netfs_ours` (a model of what EROFS asks
of fscache, over our `FsCache`); both take the same orders, one JSON object a line:

    {"id": 1, "op": "mount", "name": "a", "fsid": "blob", "domain": null, "devices": []}
    {"id": 2, "op": "read", "name": "a", "file": "data", "offset": 0, "length": 4096}
    {"id": 3, "op": "umount", "name": "a"}
    {"id": 4, "op": "drop-caches"}
    {"id": 5, "op": "signal", "to": 2, "signal": 9}
    {"id": 6, "op": "asleep", "to": 2}

and answer {"id": 1, "said": "ok"}, in which "said" is what stands in the transcript.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from tests.scenarios.files import DEADLINE
from tests.scenarios.image import PAGE
from tests.scenarios.transcript import Transcript

import pagein


class NetfsProcess:
    """The process, and the answers that have come from it."""

    def __init__(self, module: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
            env=_environment(),
            text=True,
        )
        self._answers: dict[int, queue.SimpleQueue[str]] = {0: queue.SimpleQueue()}
        self._last = 0
        self._listener = threading.Thread(target=self._listen, name="netfs answers")
        self._listener.start()
        if self.answer(0) != "ready":
            self.end()
            raise RuntimeError(f"{module} did not start")

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _listen(self) -> None:
        for line in self._pipes[1]:
            answer = json.loads(line)
            self._answers[answer["id"]].put(answer["said"])
        for waiting in self._answers.values():
            waiting.put("netfs is gone")

    def start(self, op: str, **arguments: Any) -> int:
        """Give an order; returns its id."""
        self._last += 1
        self._answers[self._last] = queue.SimpleQueue()
        line = json.dumps({"id": self._last, "op": op, **arguments})
        print(line, file=self._pipes[0], flush=True)
        return self._last

    def answer(self, number: int, timeout: float = DEADLINE) -> str | None:
        """What came of an order, or None within `timeout` seconds."""
        try:
            return self._answers[number].get(timeout=timeout) if timeout else self._now(number)
        except queue.Empty:
            return None

    def _now(self, number: int) -> str:
        return self._answers[number].get_nowait()

    def do(self, op: str, **arguments: Any) -> str:
        """Give an order and wait for its answer."""
        said = self.answer(self.start(op, **arguments))
        assert said is not None, f"no answer to {op} {arguments}"
        return said

    def kill(self) -> None:
        """End it at once, as what waits for it must end."""
        self._process.kill()

    def end(self) -> None:
        """Have it end."""
        stdin, stdout = self._pipes
        with contextlib.suppress(OSError):
            stdin.close()
        try:
            self._process.wait(DEADLINE)
        finally:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._listener.join(DEADLINE)
            stdout.close()


def _environment() -> dict[str, str]:
    here, source = Path(__file__).parents[2], Path(pagein.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{here}:{source}"}


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)[1:-1]


class Pending:
    """Something that a netfs or a reader is about."""

    def __init__(self, process: NetfsProcess, log: Transcript, what: str, number: int) -> None:
        self._process = process
        self._log = log
        self._number = number
        self.what = what
        self.said: str | None = None

    def result(self) -> str:
        """Wait for its end, and write what came of it."""
        self.settle()
        self._log.say(f"{self.what}: {self.said or 'no answer'}")
        return self.said or ""

    def fails(self) -> None:
        """Wait for its end, which must be one of the errors that a refused OPEN of a new file has.

        Which one depends on whether the mount was still waiting for the lookup (facts 6).
        """
        self.settle()
        either = self.said in ("EIO", "ENOBUFS")
        self._log.say(f"{self.what}: {'EIO or ENOBUFS' if either else self.said or 'no answer'}")

    def ended(self) -> bool:
        """Whether it has come to its end."""
        if self.said is None:
            self.said = self._process.answer(self._number, 0)
        return self.said is not None

    def settle(self) -> None:
        """Wait for its end without a word."""
        if self.said is None:
            self.said = self._process.answer(self._number)

    def waits(self) -> None:
        """See that it is waiting: so whatever it has to ask has been asked, but for an OPEN."""
        self._process.do("asleep", to=self._number)
        self.said = self._process.answer(self._number, 0)
        self._log.say(f"{self.what}: {self.said or 'waits'}")

    def signal(self, name: str) -> None:
        """Send its process a signal: "KILL", or "USR1", for which it has a handler."""
        self._log.say(f"{self.what}: gets SIG{name}")
        number = signal.Signals[f"SIG{name}"].value
        self._process.do("signal", to=self._number, signal=number)


class Netfs:
    """What a scenario orders of the netfs; all of it is started, and may be waited for."""

    def __init__(self, process: NetfsProcess, log: Transcript) -> None:
        self._process = process
        self._log = log
        self.started: list[Pending] = []

    def _start(self, what: str, op: str, **arguments: Any) -> Pending:
        self._log.say(f"{what} ...")
        number = self._process.start(op, **arguments)
        pending = Pending(self._process, self._log, what, number)
        self.started.append(pending)
        return pending

    def mount(
        self, name: str = "a", fsid: str = "blob", domain: str | None = None, *devices: str
    ) -> Pending:
        """Start mounting an image under a name."""
        options = [f"fsid={fsid}", *([f"domain_id={domain}"] if domain else [])]
        options += [f"device={device}" for device in devices]
        what = f"mount {name} ({_printable(','.join(options))})"
        if len(what) > 200:
            what = f"mount {name} (fsid of {len(fsid)}, domain of {len(domain or '')})"
        return self._start(what, "mount", name=name, fsid=fsid, domain=domain, devices=devices)

    def read(self, offset: int, length: int, *, name: str = "a", file: str = "data") -> Pending:
        """Start reading a range of a file, in one pread(2) without readahead beyond it."""
        what = f"read {name}/{file} {offset}+{length}"
        return self._start(what, "read", name=name, file=file, offset=offset, length=length)

    def mount_9p(self, name: str = "a", *, version: int = 1, size: int = 16 * PAGE) -> Pending:
        """Start mounting a server whose file `data` has that version and size.

        Its volume is "9p,server,tag", its key `NINEP_KEY`.
        """
        what = f"mount {name} (9p, version {version}, {size} bytes)"
        return self._start(what, "mount-9p", name=name, version=version, size=size)

    def served(self) -> None:
        """Write what the server of 9p was asked for since the last time."""
        self._log.say(f"fetched: {self._process.do('served')}")

    def umount(self, name: str = "a") -> None:
        """Unmount; returns when umount(2) does."""
        said = self._process.do("umount", name=name)
        self._log.say(f"umount {name}: {said}")

    def drop_caches(self) -> None:
        """Have the page cache of everything emptied."""
        self._log.say(f"drop caches: {self._process.do('drop-caches')}")

    def inject(self, *, errors: bool) -> None:
        """Have each look at the backing file system fail with EIO, or work again."""
        said = self._process.do("inject", errors=errors)
        self._log.say(f"EIO {'from' if errors else 'no more from'} the backing file system: {said}")

    def reset(self) -> None:
        """At the end of a scenario: nothing is mounted and nobody waits."""
        for pending in self.started:
            pending.settle()
        said = self._process.do("reset")
        assert said == "ok", said
