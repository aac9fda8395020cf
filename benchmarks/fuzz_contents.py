"""Damage for `fuzz.py` to the contents of tables, Parquet files and tars, which keep their format.

Values and types are wrong, columns missing or repeated, members of archives odd. `fuzz_mutations.py` damages bytes.
"""

import csv
import gzip
import io
import random
import tarfile

CELLS = (
    "",
    " ",
    "nan",
    "NaN",
    "inf",
    "-1",
    "0.5",
    "1e400",
    "\0",
    "a;b;;|c",
    "'",
    '"',
    "../0.png",
    "/dev/zero",
    "/dev/null",
)
CELLS += (
    "é",
    "\u202e",
    "\x1b[2J",
    "a" * 200_000,
    "9" * 5000,
    "None",
    "true",
    "2024-01-01",
    "0x10",
    "nowhere.png",
    "..",
)
HEADERS = ("", "path", "label", "split", "image", "id", "Unnamed: 0", "\0", "a" * 5000, "PATH ")


def mutate_table(content: bytes, name: str, rng: random.Random) -> bytes:
    """Damage the cells, rows, columns or encoding of CSV or TSV."""
    separator = "\t" if name.endswith(".tsv") else ";" if content.count(b";") > content.count(b",") else ","
    rows = list(csv.reader(content.decode().splitlines(), delimiter=separator))
    for _ in range(rng.choice((1, 1, 2))):
        row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
        match rng.randrange(9):
            case 0 | 1 | 2 if row and column < len(rows[row]):
                rows[row][column] = rng.choice(CELLS)
            case 3:
                rows[0][column] = rng.choice(HEADERS)
            case 4:
                value = rng.choice(CELLS)
                rows = [rows[0], *([*own[:column], value, *own[column + 1 :]] for own in rows[1:])]
            case 5:
                rows = [own[:column] + own[column + 1 :] for own in rows]
            case 6:
                rows = [[*own, *own[column : column + 1]] for own in rows]
            case 7:
                rows[row] = rng.choice((rows[row][:column], rows[row] * 2, [], rows[row] * 10_000))
            case _:
                rows = rows[: rng.randrange(len(rows) + 1)]
        if not rows or not rows[0]:
            break
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows(rows)
    encoding = rng.choice(("utf-8",) * 6 + ("utf-16", "latin-1", "utf-8-sig"))
    return text.getvalue().encode(encoding, "replace")


def mutate_parquet(content: bytes, name: str, rng: random.Random) -> bytes:
    """Write a Parquet file again, with another type, name or values of a column."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(content))
    index = rng.randrange(table.num_columns)
    column, count = table.column_names[index], table.num_rows
    columns = (
        [None] * count,
        [float("nan")] * count,
        [b"\0\xff"] * count,
        [{"bytes": b"x", "path": None}] * count,
        [{"bytes": None, "path": "/dev/zero"}] * count,
        [[1, [2]][:1]] * count,
        [2**62] * count,
        [True] * count,
        ["a" * 100_000] * count,
        ["../images/0.png"] * count,
        [0.5, -1.0, *[None] * (count - 2)],
    )
    match rng.randrange(5):
        case 0:
            table = table.drop_columns([column])
        case 1:
            table = table.append_column(rng.choice((column, "label", "split", "")), table[column])
        case 2:
            table = table.rename_columns(
                [rng.choice(HEADERS) if i == index else n for i, n in enumerate(table.column_names)]
            )
        case 3:
            table = table.slice(0, rng.choice((0, 1, 2)))
        case _:
            table = table.set_column(index, column, pyarrow.array(rng.choice(columns)))
    out = io.BytesIO()
    pyarrow.parquet.write_table(
        table.replace_schema_metadata(None if rng.random() < 0.5 else table.schema.metadata), out
    )
    return out.getvalue()


def mutate_tar(content: bytes, name: str, rng: random.Random) -> bytes:
    """Change, add or remove members of a tar, or compress it."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [(entry.name, archive.extractfile(entry).read(), {}) for entry in archive]
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_SPARSE,
    )
    names = (
        "../../x.png",
        "/etc/passwd.png",
        "s0.png",
        "s0.json",
        ".png",
        "a" * 300 + ".png",
        "x.\x1b.png",
        "é.cls",
        "s1.PNG",
    )
    contents = (
        b"",
        b"\xff",
        b"nan",
        b"5",
        b"[1]",
        b'{"cls": 1}',
        b"[" * 50_000,
        b'{"size": 1e999}',
        b"9" * 5000,
        b"{}",
    )
    for _ in range(rng.choice((1, 1, 3))):
        if not members:
            break
        index = rng.randrange(len(members))
        name, own, changes = members[index]
        match rng.randrange(6):
            case 0:
                del members[index]
            case 1:
                members[index] = (rng.choice(names), own, changes)
            case 2 | 3:
                members[index] = (name, rng.choice(contents), changes)
            case 4:
                members[index] = (name, own, {"type": rng.choice(kinds), "linkname": "/etc/passwd", "size": 0})
            case _:
                members.insert(index, members[rng.randrange(len(members))])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for name, own, changes in members:
            info = tarfile.TarInfo(name)
            for field, value in ({"size": len(own)} | changes).items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(own) if info.isreg() else None)
    data = out.getvalue()
    match rng.randrange(12):
        case 0:
            return gzip.compress(data)
        case 1:
            return data + data
        case 2:
            return data[: rng.randrange(len(data))]
    return data
