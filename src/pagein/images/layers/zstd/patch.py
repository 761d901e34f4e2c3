"""Blocks that use tables of blocks before them, changed so that they bring these themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pagein.images.layers.zstd import sections
from pagein.images.layers.zstd.frames import COMPRESSED, MAX_BLOCK, Block
from pagein.images.layers.zstd.sections import (
    HUFFMAN,
    REPEAT,
    TABLES,
    TREELESS,
    Sections,
)

HEAD = 3  # bytes in front of a block's payload
_MAX_TREE = 1 + 128  # bytes of the description of a Huffman tree


class Unfit(Exception):
    """This place cannot be entered; another one can."""


class Tables(NamedTuple):
    """Which blocks gave the tables that the next block may use again: None for none yet."""

    tree: bytes | None = None
    """What its payload had from the Huffman tree on."""
    given: tuple[Sections | None, ...] = (None,) * TABLES

    def after(self, payload: bytes, block: Sections) -> Tables:
        """Once `block` has been decoded."""
        tree, given = self.tree, self.given
        if block.literals.kind == HUFFMAN:
            tree = payload[block.literals.header : block.literals.header + _MAX_TREE]
        if block.amount:
            modes = block.modes
            given = tuple(
                before if mode == REPEAT else block
                for mode, before in zip(modes, given, strict=True)
            )
        return Tables(tree, given)


class Splice(NamedTuple):
    """At byte `at`, counted from the point, `delete` bytes make way for `insert`."""

    at: int
    delete: int
    insert: bytes


def with_tables(block: Sections, tables: Tables) -> bytes:
    """The sequences section of `block`, with the tables in it that it has from others."""
    modes = block.modes
    if REPEAT not in modes:
        return block.sequences
    described = _described(block, tables)
    start = block.modes_at
    end = start + 1 + sum(map(len, sections.descriptions(block)))
    return block.sequences[:start] + described + block.sequences[end:]


def _described(block: Sections, tables: Tables) -> bytes:
    """The byte with the modes, and the descriptions, none of them REPEAT."""
    modes, parts = list(block.modes), sections.descriptions(block)
    for number, (mode, giver) in enumerate(zip(block.modes, tables.given, strict=True)):
        if mode == REPEAT:
            if giver is None:
                raise Unfit("a table that nobody gave")
            modes[number] = giver.modes[number]
            parts[number] = sections.descriptions(giver)[number]
    return bytes((sections.with_modes(tuple(modes)),)) + b"".join(parts)


class Patches:
    """What has to be changed behind a point. `see` each block from there on until `settled`."""

    def __init__(self, at: int, tables: Tables) -> None:
        """The point lies at byte `at` of the layer, where `tables` are those to be used again."""
        self.settled = False
        """Whether no further block can need a change."""
        self.splices: list[Splice] = []
        self._at = at
        self._tables = tables
        self._tree = tables.tree is not None
        self._modes = tables.given != Tables().given

    def see(self, block: Block, parts: Sections | None) -> None:
        """The next block; `parts` of it if it is a compressed one. `Unfit` if it cannot be done."""
        if block.kind == COMPRESSED and parts is not None:
            found: list[Splice] = []
            if self._tree and parts.literals.kind in (HUFFMAN, TREELESS):
                self._tree = False
                if parts.literals.kind == TREELESS:
                    found.append(self._with_tree(block, parts))
            if self._modes and parts.amount:
                self._modes = False
                if REPEAT in parts.modes:
                    found.append(self._with_descriptions(block, parts))
            if found:
                self.splices += self._with_head(block, found)
        self.settled = not (self._tree or self._modes)

    def end(self) -> None:
        """The frame is over."""
        self.settled = True

    def _with_tree(self, block: Block, parts: Sections) -> Splice:
        literals, given = parts.literals, self._tables.tree
        assert given is not None
        tree = given[: sections.tree_size(given)]
        header = sections.widened(literals, len(tree))
        if header is None:
            raise Unfit("literals that cannot hold a tree")
        return Splice(block.at - self._at + HEAD, literals.header, header + tree)

    def _with_descriptions(self, block: Block, parts: Sections) -> Splice:
        insert = _described(parts, self._tables)
        delete = 1 + sum(map(len, sections.descriptions(parts)))
        begin = len(block.payload) - len(parts.sequences) + parts.modes_at
        return Splice(block.at - self._at + HEAD + begin, delete, insert)

    def _with_head(self, block: Block, found: Sequence[Splice]) -> list[Splice]:
        size = block.size + sum(len(each.insert) - each.delete for each in found)
        if size > MAX_BLOCK:
            raise Unfit("a block that would be too large")
        number = size << 3 | COMPRESSED << 1 | block.last
        return [Splice(block.at - self._at, HEAD, number.to_bytes(HEAD, "little")), *found]


class Splicer:
    """Applies splices to what comes from a point on, in pieces of any size."""

    def __init__(self, splices: Sequence[Splice]) -> None:
        self._splices = list(splices)
        self._at = 0
        self._drop = 0

    def feed(self, data: bytes) -> bytes:
        """What comes in place of `data`."""
        if not self._splices and not self._drop:
            return data
        parts: list[bytes] = []
        while data:
            if self._splices and not self._drop and self._splices[0].at == self._at:
                splice = self._splices.pop(0)
                parts.append(splice.insert)
                self._drop = splice.delete
            elif self._drop:
                dropped = min(self._drop, len(data))
                self._drop -= dropped
                data, self._at = data[dropped:], self._at + dropped
            else:
                until = min(len(data), self._splices[0].at - self._at if self._splices else 1 << 62)
                parts.append(data[:until])
                data, self._at = data[until:], self._at + until
        return b"".join(parts)
