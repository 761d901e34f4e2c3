"""The tar parser, on archives made by hand: what no tool writes, or only another one's bug."""

import base64
import stat

import pytest
from tests.layers.rig import member, pax, tar_of

from pagein.images.layers.entry import Entry, Limits, Segment
from pagein.images.layers.errors import LayerError
from pagein.images.layers.tar import TarParser


class Seen:
    """A visitor that keeps everything."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.content: list[bytearray] = []
        self.positions: list[list[int]] = []

    def entry(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.content.append(bytearray())
        self.positions.append([])

    def data(self, position: int, view: memoryview) -> None:
        self.content[-1] += view
        self.positions[-1].append(position)


def parse(archive: bytes, step: int = 1 << 20, limits: Limits | None = None) -> Seen:
    seen = Seen()
    parser = TarParser(seen, limits or Limits())
    for at in range(0, len(archive), step):
        parser.feed(archive[at : at + step])
    parser.close()
    return seen


def only(archive: bytes) -> Entry:
    (entry,) = parse(archive).entries
    return entry


SPARSE_1_0 = pax(
    (b"GNU.sparse.major", b"1"),
    (b"GNU.sparse.minor", b"0"),
    (b"GNU.sparse.name", b"real"),
    (b"GNU.sparse.realsize", b"20000"),
) + member(b"GNUSparseFile.0/real", b"0", b"2\n0\n3\n8192\n4\n".ljust(512, b"\0") + b"abcdefg")


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 1 << 20])
def test_pieces_of_any_size_give_the_same(step: int) -> None:
    archive = tar_of(member(b"a", data=b"x" * 1000), SPARSE_1_0, member(b"d/", b"5", mode=0o700))
    seen = parse(archive, step)
    assert [entry.path for entry in seen.entries] == [b"a", b"real", b"d/"]
    assert seen.content == [b"x" * 1000, b"abcdefg", b""]
    assert seen.positions[0][0] == 512
    assert seen.entries[1].segments == (Segment(0, 3584, 3), Segment(8192, 3587, 4))
    assert seen.entries[1].size == 20000
    assert seen.entries[2].mode == stat.S_IFDIR | 0o700


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"    644 ", 0o644),
        (b"00000644", 0o644),
        (b"644\0junk", 0o644),
        (bytes(8), 0),
        (b"\x80" + (12345).to_bytes(7, "big"), 12345),
    ],
)
def test_a_number_in_every_form(field: bytes, value: int) -> None:
    assert only(tar_of(member(b"a", fields={108: field}))).uid == value


def test_a_negative_time() -> None:
    before = b"\xff" * 11 + b"\xfe"
    assert only(tar_of(member(b"a", fields={136: before}))).mtime_ns == -2 * 10**9
    before = b"-1.5"
    assert only(tar_of(pax((b"mtime", before)), member(b"a"))).mtime_ns == -1_500_000_000


def test_a_time_is_cut_to_nanoseconds() -> None:
    for text, value in [(b"1.1234567899", 1_123_456_789), (b"7", 7 * 10**9), (b"1e-09", 1)]:
        assert only(tar_of(pax((b"mtime", text)), member(b"a"))).mtime_ns == value


def test_the_prefix_belongs_to_posix_only() -> None:
    prefix = {345: b"some/where"}
    assert only(tar_of(member(b"a", fields=prefix))).path == b"some/where/a"
    assert only(tar_of(member(b"a", magic=b"ustar  \0", fields=prefix))).path == b"a"
    star = {345: b"p" * 131, 476: b"00000000000\0", 508: b"tar\0"}
    assert only(tar_of(member(b"a", fields=star))).path == b"p" * 131 + b"/a"


def test_old_kinds_of_members() -> None:
    assert stat.S_ISDIR(only(tar_of(member(b"dir/", b"\0", magic=b""))).mode)
    assert stat.S_ISREG(only(tar_of(member(b"file", b"7"))).mode)
    seen = parse(tar_of(member(b"dump", b"D", b"Yfile\0\0"), member(b"label", b"V"), member(b"z")))
    assert [entry.path for entry in seen.entries] == [b"dump", b"z"]
    assert seen.content == [b"", b""]


def test_links_and_devices_have_no_data_whatever_they_say() -> None:
    kinds = [b"1", b"2", b"3", b"4", b"5", b"6"]
    members = [member(b"x", kind, size=10_000, link=b"t") for kind in kinds]
    assert len(parse(tar_of(*members)).entries) == 6


def test_long_names_of_gnu() -> None:
    path, link = b"p/" * 300 + b"x", b"l/" * 300 + b"x"
    archive = tar_of(
        member(b"././@LongLink", b"L", path + b"\0"),
        member(b"././@LongLink", b"K", link + b"\0"),
        member(b"p/p/p", b"2", link=b"l/l"),
    )
    assert (only(archive).path, only(archive).linkname) == (path, link)


def test_global_headers_hold_until_another_one() -> None:
    archive = tar_of(
        pax((b"uid", b"7"), (b"comment", b"c"), kind=b"g"),
        member(b"a"),
        pax((b"uid", b"8")) + member(b"b"),
        pax((b"uid", b""), kind=b"g"),
        member(b"c"),
        pax((b"uid", b"9"), kind=b"g"),
    )
    assert [entry.uid for entry in parse(archive).entries] == [7, 8, 0]


def test_a_later_extended_header_replaces_an_earlier_one() -> None:
    archive = tar_of(pax((b"uid", b"7"), (b"path", b"x")), pax((b"gid", b"8")), member(b"a"))
    entry = only(archive)
    assert (entry.path, entry.uid, entry.gid) == (b"a", 0, 8)


def test_extended_attributes_in_both_forms() -> None:
    value = b"\0bin=\n"
    packed = base64.b64encode(value).rstrip(b"=")
    archive = tar_of(
        pax(
            (b"SCHILY.xattr.user.a%3Db%25", value),
            (b"LIBARCHIVE.xattr.user.%C3%A4", packed),
            (b"LIBARCHIVE.xattr.user.both", base64.b64encode(b"coded")),
            (b"SCHILY.xattr.user.both", b"raw"),
            (b"SCHILY.xattr.user.empty", b""),
        ),
        member(b"a"),
    )
    assert only(archive).xattrs == {
        b"user.a=b%": value,
        "user.ä".encode(): value,
        b"user.both": b"raw",
        b"user.empty": b"",
    }


def old_gnu_pairs(*pairs: tuple[int, int]) -> bytes:
    return b"".join(b"%011o\0%011o\0" % pair for pair in pairs)


def test_an_old_sparse_map_that_goes_on() -> None:
    pairs = [(n * 1024, 512) for n in range(30)]
    extension = old_gnu_pairs(*pairs[4:25]).ljust(504, b"\0") + b"\1".ljust(8, b"\0")
    extension += old_gnu_pairs(*pairs[25:]).ljust(512, b"\0")
    archive = tar_of(
        member(
            b"s",
            b"S",
            b"d" * 512 * 30,
            magic=b"ustar  \0",
            tail=extension,
            fields={386: old_gnu_pairs(*pairs[:4]), 482: b"\1", 483: b"%011o\0" % 40_000},
        )
    )
    entry = only(archive)
    assert entry.size == 40_000
    assert [(s.offset, s.length) for s in entry.segments] == pairs
    assert entry.segments[0].position == 512 * 3


def test_pax_sparse_0_0_and_0_1() -> None:
    maps = [
        [
            (b"GNU.sparse.numblocks", b"2"),
            (b"GNU.sparse.offset", b"0"),
            (b"GNU.sparse.numbytes", b"3"),
            (b"GNU.sparse.offset", b"100"),
            (b"GNU.sparse.numbytes", b"4"),
        ],
        [(b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.map", b"0,3,100,4")],
    ]
    for records in maps:
        header = pax((b"GNU.sparse.size", b"1000"), *records)
        entry = only(tar_of(header, member(b"s", data=b"abcdefg")))
        assert [(s.offset, s.length) for s in entry.segments] == [(0, 3), (100, 4)]
        assert entry.size == 1000


def test_a_file_that_is_one_hole() -> None:
    header = pax((b"GNU.sparse.size", b"1000"), (b"GNU.sparse.numblocks", b"0"))
    entry = only(tar_of(header, member(b"s")))
    assert (entry.size, entry.segments) == (1000, ())


# ---- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "end", [b"", bytes(512), bytes(1024), bytes(10240), bytes(1024) + b"garbage" * 1000]
)
def test_an_archive_ends_in_many_ways(end: bytes) -> None:
    assert [entry.path for entry in parse(member(b"a", data=b"x") + end).entries] == [b"a"]


def test_the_last_member_may_lack_its_padding() -> None:
    assert parse(member(b"a", data=b"x")[:513]).content == [b"x"]


def test_an_empty_archive() -> None:
    assert parse(b"").entries == parse(bytes(512)).entries == []


# ---- refused, by name or place ------------------------------------------------------------------

GOOD = member(b"first", data=b"x" * 600)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (GOOD[:100], r"truncated in a header at offset 1536"),
        (GOOD[:700], r"truncated in the data of 'first' at offset 2048"),
        (GOOD[:200] + b"X" + GOOD[201:], r"wrong checksum of the header at offset 1536"),
        (member(b"a", fields={124: b"12x45"}), r"a size at offset 1536 is not a number"),
        (member(b"a", fields={124: b"\xff" * 12}), r"impossible size -1"),
        (member(b"a", fields={124: b"\x80" + b"\xff" * 11}), r"beyond 64 bits"),
        (member(b"a", fields={108: b"\x80" + b"\xff" * 7}), r"owner .* of 'a' is beyond 32 bits"),
        (member(b"a", b"M"), r"multi-volume archive at offset 1536"),
        (member(b"what", b"Q"), r"unknown type 'Q' of 'what' at offset 1536"),
        (member(b"x", b"x", size=1 << 30), r"extended header of 1073741824 bytes"),
        (member(b"L", b"L", size=1 << 21), r"extended header of 2097152 bytes"),
        (pax((b"uid", b"1")), r"without a member"),
        (member(b"x", b"x", b"99 uid=1\n") + GOOD, r"bad record .* at offset 1536"),
        (member(b"x", b"x", b"6 uid\n") + GOOD, r"record without '='"),
        (pax((b"mtime", b"soon")) + GOOD, r"not a time"),
        (pax((b"size", b"many")) + GOOD, r"not a number for 'size'"),
        (pax((b"path", b"a\0b")) + GOOD, r"a NUL in a name"),
        (pax((b"LIBARCHIVE.xattr.user.a", b"!!")) + GOOD, r"not base64"),
        (pax((b"GNU.sparse.map", b"0,5,3,5")) + GOOD, r"sparse map out of order"),
        (pax((b"GNU.sparse.map", b"0,5,3")) + GOOD, r"odd sparse map"),
        (pax((b"GNU.sparse.map", b"0,700")) + GOOD, r"beyond the file's size"),
        (pax((b"GNU.sparse.map", b"0,60")) + GOOD, r"stored size differ"),
        (pax((b"GNU.sparse.major", b"1")) + GOOD, r"sparse map without end|not a number"),
    ],
)
def test_a_bad_archive_is_refused_and_told_where(bad: bytes, says: str) -> None:
    with pytest.raises(LayerError, match=says):
        parse(member(b"before", data=b"y" * 513) + bad)


def test_endless_headers_are_refused() -> None:
    record = (b"k" * 1000, b"v")
    endless = b"".join(pax((b"%d" % n + record[0], b"v"), kind=b"g") for n in range(50))
    with pytest.raises(LayerError, match="endless global headers"):
        parse(tar_of(endless), limits=Limits(extension=10_000))
    extension = old_gnu_pairs(*[(n * 4096, 1) for n in range(21)]).ljust(504, b"\0")
    extension = (extension + b"\1".ljust(8, b"\0")) * 100
    sparse = member(b"s", b"S", tail=extension, fields={482: b"\1", 483: b"%011o\0" % (1 << 30)})
    sparse = sparse.replace(bytes(96), old_gnu_pairs(*[(n, 0) for n in range(4)]), 0)
    with pytest.raises(LayerError, match="endless sparse map"):
        parse(tar_of(sparse), limits=Limits(segments=1000))
