"""The user half with a registry: what a command will read is under way before it is read."""

import asyncio
import gc
import importlib.util
import marshal
from functools import partial
from pathlib import Path

import pytest
from tests.foresight.programs import elf
from tests.traces.machine import Machine, Registry, published, trace_of, until
from tests.traces.rig import KIB, MIB, IndexedLayer, noise

from pagein.daemon.images import _wanted
from pagein.images.foresight.command import Command
from pagein.images.foresight.foresee import Foresight
from pagein.images.layers import names
from pagein.images.manifest import digest_of
from pagein.images.traces.files import Files

LIB = "usr/lib/python3.11"
PROGRAM, FIRST, SECOND = "usr/bin/python3.11", "usr/lib/libone.so", "usr/lib/libtwo.so"
SCRIPT, LOADER = "srv/app.py", "lib64/ld-linux-x86-64.so.2"
RUN = {"command": ["python3.11", "/srv/app.py"], "entrypoint": None, "workdir": None}


def module(name: str) -> str:
    return f"{LIB}/__pycache__/{name}.cpython-311.pyc"


NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta")
ALPHA, BETA, GAMMA, DELTA, EPSILON, ZETA, ETA = map(module, NAMES)


def compiled(name: str, imports: str) -> bytes:
    code = compile(f"import {imports}", f"/{LIB}/{name}.py", "exec")
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def layers_in(directory: Path) -> list[IndexedLayer]:
    """Files that somebody wants, in spans of their own: with what packing does not make smaller."""
    lower = {
        PROGRAM: elf("/" + LOADER, ("libone.so",), size=700 * KIB),
        FIRST: elf("", ("libtwo.so",)),
        SECOND: elf(),
        LOADER: elf(),
        "usr/bin/other": elf("", ("libelse.so",)),
    }
    upper = {
        SCRIPT: b"import alpha",
        ALPHA: compiled("alpha", "beta"),
        BETA: compiled("beta", "gamma"),
        GAMMA: compiled("gamma", "delta"),
        DELTA: compiled("delta", "epsilon"),
        EPSILON: compiled("epsilon", "nothing"),
        ZETA: compiled("zeta", "eta"),
        ETA: compiled("eta", "nothing"),
        f"{LIB}/alpha.py": b"import beta\n\ndef late():\n    import zeta\n",
        f"{LIB}/beta.py": b"from gamma import one",
        f"{LIB}/gamma.py": b"import delta",
        f"{LIB}/delta.py": b"try:\n    import epsilon\nexcept ImportError:\n    pass\n",
        **{f"{LIB}/{name}.py": b"" for name in ("epsilon", "zeta", "eta")},
    }
    found = []
    for number, files in enumerate((lower, upper)):
        apart = {}
        for at, (name, content) in enumerate(files.items()):
            apart[name] = content
            apart[f"noise/{number}-{at}"] = noise(f"{number}-{at}", 600 * KIB)
        found.append(IndexedLayer(apart, directory / f"{number}"))
    return found


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> list[IndexedLayer]:
    """With indexes that say what files name."""
    return layers_in(tmp_path_factory.mktemp("named"))


@pytest.fixture
def layers(named: list[IndexedLayer], monkeypatch: pytest.MonkeyPatch) -> list[IndexedLayer]:
    """With indexes as they were before, and as those of tables of contents are."""
    monkeypatch.setattr(names, "blocks", lambda _: None)
    return named


def place_of(layers: list[IndexedLayer], name: str) -> tuple[IndexedLayer, int, int]:
    """Its layer, and where it begins in the data blob, and how long it is."""
    layer = next(each for each in layers if name in each.files)
    with layer.opened() as index:
        (part,) = Files(index).find(f"/{name}".encode())
    return layer, part.position, part.length


def asked(registry: Registry, layers: list[IndexedLayer], name: str) -> bool:
    """Whether all spans that a file lies in were asked for."""
    layer, start, length = place_of(layers, name)
    digest = digest_of(layer.packed)
    ranges = [(low, high) for each, low, high in registry.ranges if each == digest]
    with layer.opened() as index:
        (piece,) = index.pieces(start, start + length)
        first = index.point_before(piece.position)
        last = index.point_before(piece.position + piece.length - 1)
        places = [index.place(number) for number in range(first, last + 1)]
    return all(
        any(low <= place.start and place.end <= high for low, high in ranges) for place in places
    )


async def read(half: Machine, layers: list[IndexedLayer], name: str) -> None:
    """As a reader of its first page does."""
    layer, start, _ = place_of(layers, name)
    number = next(n for key, n in half.objects.items() if key.startswith(digest_of(layer.packed)))
    await half.answered(half.device.send_read(number, start, 4 * KIB))
    assert half.has(layer, name, 0, min(4 * KIB, len(layer.files[name])))


def test_programs_come_whole_and_modules_as_far_as_they_are_named(
    layers: list[IndexedLayer], tmp_path: Path
) -> None:
    async def main() -> None:
        async with published(layers, tmp_path) as (registry, half):
            answer = await half.bring(run=RUN)
            for name in (PROGRAM, LOADER, FIRST, SECOND, SCRIPT, ALPHA, BETA, GAMMA):
                await until(partial(asked, registry, layers, name))
            assert not half.device.files, "it is not mounted yet"
            await half.open(answer)
            for name in (PROGRAM, LOADER, FIRST, SECOND):
                size = len(layers[0].files[name])
                await until(partial(half.has, layers[0], name, 0, size))
            assert not half.has(layers[1], BETA, 0, 10), "nobody has read it"
            for name in ("usr/bin/other", "noise/0-0", "noise/1-3", DELTA):
                assert not asked(registry, layers, name)
            before = len(registry.ranges)
            await read(half, layers, BETA)
            assert len(registry.ranges) == before
            await read(half, layers, GAMMA)
            await until(lambda: asked(registry, layers, DELTA))
            assert sum(high - low for _, low, high in registry.ranges) < 5 * MIB

    asyncio.run(main())


def test_all_that_is_named_is_asked_for_before_anything_was_read(
    named: list[IndexedLayer], tmp_path: Path
) -> None:
    """Not one request waits for another's answer."""
    wanted = (PROGRAM, LOADER, FIRST, SECOND, SCRIPT, ALPHA, BETA, GAMMA, DELTA, EPSILON)

    async def main() -> None:
        async with published(named, tmp_path) as (registry, half):
            held = asyncio.Event()
            registry.gate = lambda _digest, _start: held
            answer = await half.bring(run=RUN)
            await until(lambda: all(asked(registry, named, name) for name in wanted))
            assert not half.device.files, "it is not mounted yet"
            held.set()
            await half.open(answer)
            await half.idle()
            for name in wanted:
                assert asked(registry, named, name)
                layer, _, size = place_of(named, name)
                assert half.has(layer, name, 0, size)
            for name in ("usr/bin/other", "noise/0-0", ZETA, ETA):
                assert not asked(registry, named, name)
            before = list(registry.ranges)
            assert len(before) == len(set(before)) <= len(wanted), "nothing twice"
            await read(half, named, GAMMA)
            assert registry.ranges == before

    asyncio.run(main())


def test_what_nothing_named_is_followed_when_it_is_read(
    named: list[IndexedLayer], tmp_path: Path
) -> None:
    async def main() -> None:
        async with published(named, tmp_path) as (registry, half):
            await half.open(await half.bring(run=RUN))
            await half.idle()
            assert not asked(registry, named, ETA)
            await read(half, named, ZETA)
            await until(lambda: asked(registry, named, ETA))

    asyncio.run(main())


def test_a_wrong_byte_of_what_was_named_is_nobodys(
    named: list[IndexedLayer], tmp_path: Path
) -> None:
    async def main() -> None:
        async with published(named, tmp_path) as (registry, half):
            registry.spoil = True
            await half.open(await half.bring(run=RUN))
            for name in (PROGRAM, SCRIPT, EPSILON):
                await read(half, named, name)

    asyncio.run(main())


def test_who_only_mounts_has_nothing_fetched(layers: list[IndexedLayer], tmp_path: Path) -> None:
    async def main() -> None:
        async with published(layers, tmp_path) as (registry, half):
            await half.open(await half.bring())
            await half.open(await half.bring(run=RUN, prefetch=False))
            await asyncio.sleep(0.1)
            assert registry.ranges == []

    asyncio.run(main())


def test_a_trace_knows_better(layers: list[IndexedLayer], tmp_path: Path) -> None:
    async def main() -> None:
        trace = trace_of(layers, [(SCRIPT, 0, 10)])
        async with published(layers, tmp_path, trace.dump()) as (registry, half):
            await half.open(await half.bring(run=RUN))
            await half.idle()
            assert asked(registry, layers, SCRIPT)
            assert not asked(registry, layers, PROGRAM)

    asyncio.run(main())


def test_a_wrong_byte_is_nobodys(layers: list[IndexedLayer], tmp_path: Path) -> None:
    async def main() -> None:
        async with published(layers, tmp_path) as (registry, half):
            registry.spoil = True
            await half.open(await half.bring(run=RUN))
            for name in (PROGRAM, SCRIPT, ALPHA):
                await read(half, layers, name)

    asyncio.run(main())


@pytest.mark.parametrize("command", [[], ["nothing"], ["/"], ["usr/bin/other"], ["/srv/app.py"]])
def test_commands_that_name_nothing_or_no_interpreter(
    layers: list[IndexedLayer], tmp_path: Path, command: list[str]
) -> None:
    async def main() -> None:
        async with published(layers, tmp_path) as (registry, half):
            await half.open(await half.bring(run={**RUN, "command": command}))
            await read(half, layers, DELTA)
            assert not asked(registry, layers, PROGRAM)

    asyncio.run(main())


def test_it_ends_with_its_user_half(layers: list[IndexedLayer], tmp_path: Path) -> None:
    async def main() -> None:
        async with published(layers, tmp_path) as (registry, half):
            held = asyncio.Event()
            registry.gate = lambda _digest, _start: held
            await half.bring(run=RUN)  # and is never mounted
            await until(lambda: registry.ranges)
            await half.images.foresights.close()
            held.set()

    asyncio.run(main())


def test_what_ends_before_it_began_leaves_nothing(
    layers: list[IndexedLayer], tmp_path: Path
) -> None:
    async def main() -> None:
        async with published(layers, tmp_path) as (registry, half):
            pull = half.images._job(_wanted({"source": f"docker://{half.host}/app:v1"})).pull
            pulled = await pull.run()
            begun = Foresight(lambda: pytest.fail("nobody asked"), {})
            begun.begin(Command((b"python3.11",)))
            begun.touched(0, 0, 4096)
            await begun.close()
            await half.images.foresights.start(pulled.name, pulled.layers, pulled.new, Command(()))
            await half.images.foresights.close()
            assert not half.images.foresights._sources
            assert registry.ranges == []

    asyncio.run(main())
    gc.collect()  # what was never awaited would be told now
