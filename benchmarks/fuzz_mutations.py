"""Random damage to files: bytes, values of JSON, and members of archives, whose checksums are corrected."""

import io
import json
import random
import struct
import zipfile
import zlib

from benchmarks.fuzz_contents import mutate_parquet, mutate_table, mutate_tar

BY_SUFFIX = {"csv": mutate_table, "tsv": mutate_table, "parquet": mutate_parquet, "tar": mutate_tar}
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)
TEXTS = ("", "\x00", "\x1b[2J", "\u202e", "\ud800", "../../x", "/dev/zero", "a" * 100_000, "1e400", "%s{}", "nan")
# Parts of pickles: marks, containers, numbers, references and calls; some nest deeply or state a false length.
OPCODES = (b"(", b"t", b"R", b"Q", b"]", b"}", b")", b"s", b"e", b"u", b"0", b"N", b"b", b"K\x01", b"J\xff\xff\xff\x7f")
OPCODES += (b"h\x00", b"q\x00", b"r\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"cos\nsystem\n", b"\x85" * 20_000)
OPCODES += (b"](" * 5_000, b"\x8a\xff" + b"\x7f" * 255, b"}(K\x00K\x00u", b"ccollections\nOrderedDict\n)R")
VALUES = (*TEXTS, None, True, -1, 0, 1.5, 2**31, 2**63, 10**400, -(2**70), float("nan"), float("inf"), [], {}, [[]])
DEEP = ("[" * 20_000 + "]" * 20_000, '{"a":' * 20_000 + "1" + "}" * 20_000)


def mutate(content: bytes, name: str, rng: random.Random) -> bytes:
    """Damage the content of a file called `name` in one or a few places."""
    if content[:4] == b"PK\x03\x04" and rng.random() < 0.75:
        return _archive(content, rng)
    if content[:8] == b"\x89PNG\r\n\x1a\n" and rng.random() < 0.75:
        return _png(_bytes(content, rng))
    if content[8:9] == b"{" and name.endswith(".safetensors") and rng.random() < 0.75:
        length = struct.unpack("<Q", content[:8])[0]
        header = _json(content[8 : 8 + length], rng) if rng.random() < 0.5 else _bytes(content[8 : 8 + length], rng)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    if (change := BY_SUFFIX.get(name.rpartition(".")[2])) and rng.random() < 0.75:
        return change(content, name, rng)
    if content[:1] in (b"{", b"[") and rng.random() < 0.75:
        return _json(content, rng)
    return _bytes(content, rng)


def _bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        size = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(data) - at)
        match rng.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                number, width = rng.choice(NUMBERS), rng.choice((1, 2, 4, 8))
                data[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(("little", "big")))
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = rng.choice(OPCODES) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 2, 8, 256)))
            case 5:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 100))
            case 6:
                other = rng.randrange(len(data) + 1)
                data[at : at + size] = data[other : other + size]
            case 7 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def _json(content: bytes, rng: random.Random) -> bytes:
    try:
        root = json.loads(content)
    except ValueError:
        return _bytes(content, rng)
    if rng.random() < 0.02:
        return json.dumps(rng.choice(VALUES)).encode()
    if rng.random() < 0.02:
        return rng.choice(DEEP).encode()
    places = list(_places(root)) if isinstance(root, dict | list) else []
    if not places:
        return _bytes(content, rng)
    for _ in range(rng.choice((1, 1, 2))):
        holder, key = rng.choice(places)
        if key not in (holder if isinstance(holder, dict) else range(len(holder))):
            continue
        match rng.randrange(5):
            case 0 | 1:
                holder[key] = rng.choice(VALUES)
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[rng.choice(TEXTS)] = holder.pop(key)
            case _:
                holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key]), "DEEP"))
    return json.dumps(root).replace('"DEEP"', rng.choice(DEEP)).encode()


def _places(value, depth: int = 0):
    """Yield pairs of a container and a key in it, for all nested values."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key], depth + 1)


def _archive(content: bytes, rng: random.Random) -> bytes:
    """Change one member of an archive, and correct the checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    chosen = rng.choice([name for name in names if name.endswith(".pkl")] or names)
    chosen = rng.choice(names) if rng.random() < 0.2 else chosen
    match rng.randrange(10):
        case 0:
            del members[chosen]
        case 1:
            members[rng.choice(TEXTS[2:6]) or "x"] = members.pop(chosen)
        case _:
            members[chosen] = _bytes(members[chosen], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, data in members.items():
            archive.writestr(name.encode(errors="replace").decode(), data)
    return out.getvalue()


def _png(content: bytes) -> bytes:
    """Correct the checksums of the chunks of a PNG, up to the first chunk with an impossible length."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(data)
