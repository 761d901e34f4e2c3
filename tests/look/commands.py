"""`pagein ls` and its kin: run within this process, which is fast, or as a user runs them."""

import subprocess

from tests.e2e.harness import COMMAND, DEADLINE
from typer.testing import CliRunner

from pagein.cli.main import app

Done = subprocess.CompletedProcess[bytes]


def run(*words: object) -> Done:
    """Run `pagein WORDS` to its end, within this process."""
    argv = [each.decode("utf-8", "surrogateescape") if isinstance(each, bytes) else str(each)
            for each in words]  # fmt: skip
    result = CliRunner().invoke(app, argv, catch_exceptions=False)
    return subprocess.CompletedProcess(
        argv, result.exit_code, result.stdout_bytes, result.stderr_bytes
    )


def run_apart(*words: object, uid: int | None = None) -> Done:
    """Run it in a process of its own, as another user if one is named.

    That user may read everything: the interpreter may lie where only root can.
    """
    apart: list[str] = []
    if uid is not None:
        apart = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        apart += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return subprocess.run(
        [*apart, *COMMAND, *map(str, words)], capture_output=True, timeout=DEADLINE, check=False
    )


def ok(*words: object) -> bytes:
    """Run a command that must work without a word on standard error; its output."""
    return _worked(run(*words))


def ok_apart(*words: object) -> bytes:
    """The same in a process of its own: what fetches has threads."""
    return _worked(run_apart(*words))


def _worked(done: Done) -> bytes:
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


def fails(*words: object) -> str:
    """Run a command that must fail with one line on standard error; that line."""
    return said(run(*words))


def said(done: Done) -> str:
    """The one line of a command that failed."""
    line = done.stderr.decode()
    assert done.returncode == 1, done
    assert line.startswith("pagein: "), line
    assert line.count("\n") == 1, line
    return line.removeprefix("pagein: ").rstrip("\n")
