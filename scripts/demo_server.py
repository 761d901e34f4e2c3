"""The web server of scripts/demo: a process of its own, which ends when its parent does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Self

from pagein.testing.webserver import WebServer


class Server:
    """Runs this file as a program; a line to it is answered with the bytes it has sent."""

    def __init__(self, directory: Path, rate: int) -> None:
        """Serve `directory` at `rate` bytes per second."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, directory, str(rate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the demo, which then stops this
        )
        self._last = 0
        self.url = self._ask("")
        if not self.url:
            self.stop()
            raise OSError("the web server does not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def sent(self) -> int:
        """Bytes of bodies sent so far, also after the server has ended."""
        if self._process.poll() is None:
            self._last = int(self._ask("sent\n"))
        return self._last

    def stop(self) -> None:
        """End it. Twice is fine."""
        if self._process.poll() is None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, question: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question)
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


async def _serve(directory: Path, rate: int) -> None:
    questions = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(questions), sys.stdin
    )
    async with WebServer(directory, rate=rate) as server:
        print(server.url("/"), flush=True)
        while await questions.readline():
            print(server.bytes_sent, flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), int(sys.argv[2])))
