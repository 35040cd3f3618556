"""Lines that look like those of a hospital, most of them broken in one way or another."""

import gzip
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa

PEOPLE, STAYS, DRUGS = 40, 60, 10


def deep(rng: random.Random, line: bytes, _: bytes) -> bytes:
    """Arrays or objects in one another, in a field that is used or in one that is not."""
    depth = rng.choice((50, 500, 1_100, 30_000))  # not where the length of the stack decides
    field = rng.choice((b"x", b"extension", b"component", b"contained", b"code", b"entry"))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"extension":[', b"]}"), (b'{"x":', b"}")))
    inside = b"1" if closing == b"}" else b""
    value = opening * depth + inside + closing * (depth if rng.random() < 0.7 else 0)
    return line[:-1] + b', "' + field + b'": ' + value + b"}"


def bundled(rng: random.Random, line: bytes, other: bytes) -> bytes:
    """A Bundle, or Bundles in one another."""
    url = rng.choice((b"", b'"fullUrl":"urn:uuid:x7",', b'"fullUrl":"http://h/Patient/p1",'))
    entries = b",".join(b"{" + url + b'"resource":' + text + b"}" for text in (line, other, line))
    for _ in range(rng.choice((1, 1, 2, 3, 30, 50, 100, 700))):
        bundle = b'{"resourceType":"Bundle","entry":[' + entries + b"]}"
        entries = b'{"resource":' + bundle + b"}"
    return bundle


SOUND = (
    b'{"resourceType": "Observation", "id": "sound", "code": {"text": "pulse"}, "subject": '
    b'{"reference": "Patient/p1"}, "effectiveDateTime": "2019-03-04", "valueQuantity": {"value": 1}'
    b"}"
)
AGAIN = (
    *(b', "code": {"text": "again"}', b', "code": null', b', "status": "cancelled"', b', "id": 5'),
    *(b', "valueQuantity": {"value": 2}', b', "valueQuantity": null', b', "valueInteger": 1'),
    *(b', "resourceType": "Observation"', b', "resourceType": "Condition"', b', "component": []'),
    *(b', "effectiveDateTime": "2019-03-04T10:00:00Z"', b', "subject": null', b', "issued": ""'),
)
WHOLE: tuple[Callable[[random.Random, bytes, bytes], bytes], ...] = (
    deep,
    bundled,
    lambda rng, line, _: line[: rng.randrange(len(line) + 1)],
    lambda rng, line, _: rng.choice((b"", b"  ", b"\t\r", b"\x0c", b"\xef\xbb\xbf", b"\x00")),
    lambda rng, line, other: line + rng.choice((b"", b" ", b"\r", b"\t")) + other,
    lambda rng, line, other: line + other + b"\n" * rng.randrange(3),
    lambda rng, line, _: line.replace(b", ", b",\n", rng.choice((1, 2, -1))),
    lambda rng, line, _: line.replace(b"{", b"{\n", 1) + b"\n" + line + line,
    lambda rng, line, _: b'{"x":\n{}}\n{}{}',
    lambda rng, line, _: line.replace(b"{", rng.choice((b"{\x00", b"\x00{", b"{\xff")), 1),
    lambda rng, line, _: line.replace(b'": "', rng.choice((b'": "\x00', b'": "\xff')), 3),
    lambda rng, line, _: line.replace(b'": "', b'": "' + rng.choice((b"\\ud800", b"\\u0000")), 2),
    lambda rng, line, _: line.decode("utf-8", "replace").encode("utf-16"),
    lambda rng, line, _: rng.choice((b"\xef\xbb\xbf", b"\xc2\xa0", b"\x1f", b" ", b"\r")) + line,
    lambda rng, line, _: (
        line + rng.choice((b"\r", b"\r\r", b" ", b",", b"}", b"\x0b", b"\xe2\x80\xa8"))
    ),
    lambda rng, line, _: line[:-1] + b", " + line[1:],  # every key twice
    lambda rng, *_: SOUND[:-1] + rng.choice(AGAIN) + b', "id": "again%d"}' % rng.randrange(10**9),
    lambda rng, line, _: line[:-1] + b', "id": "' + b"i" * rng.choice((100, 1 << 20)) + b'"}',
    lambda rng, line, _: line.replace(b"5.5", b"9" * rng.choice((40, 400, 100_000))),
    lambda rng, line, _: rng.choice(
        (b"[]", b"1", b'"x"', b"null", b"{}", b"NaN", b"[" + line + b"]")
    ),
    lambda rng, line, _: (
        b'{"resourceType":' + rng.choice((b"5", b'"x"', b'"Device"', b"null", b'"Bundle"')) + b"}"
    ),
)


class Maker:
    """Makes lines that look like those of one hospital."""

    def __init__(self, mutated: Callable[..., bytes], records: dict, seed: int) -> None:
        self.rng = random.Random(seed)
        self._mutated = mutated
        lab = dict(records["Observation"][0])
        del lab["component"]
        value = {"value": 5.5, "unit": "mmol/l", "code": "mmol/L"}
        self._plain = [
            lab,  # with a comparator
            lab | {"valueQuantity": value},
            lab | {"valueQuantity": None, "valueString": "traces"},
            lab | {"valueQuantity": value, "issued": None},
        ]
        self._all = [record for pair in records.values() for record in pair]
        self._made = 0

    def lines(self, cases: int) -> list[bytes]:
        """So many cases, most of them a line each."""
        rng = self.rng
        made = self._hospital()
        for _ in range(cases):
            line = self._line()
            chance = rng.random()
            if chance < 0.05:
                line = rng.choice(made)  # a copy of another
            elif chance < 0.15:
                line = rng.choice(WHOLE)(rng, line, rng.choice(made))
            made.append(line)
        rng.shuffle(made)
        return made

    def _line(self) -> bytes:
        """A record with a name of its own, broken or not."""
        rng = self.rng
        among = self._plain if rng.random() < 0.4 else self._all
        sound = rng.random() < 0.3
        text = json.dumps(rng.choice(among)).encode() if sound else self._mutated(rng, among)
        self._made += 1
        name = b'"id": "x%d"' % (self._made if rng.random() < 0.95 else rng.randrange(9))
        if rng.random() < 0.5:
            second = self._made // 2 % 3600
            stamp = b"2020-01-01T%02d:%02d:00Z" % divmod(second, 60)
            name += b', "meta": {"lastUpdated": "%s"}' % stamp
        text = text.replace(b'"id": "x"', name)
        for word, many in ((b"Patient/p", PEOPLE + 2), (b"Encounter/e", STAYS), (b"Medication/m", DRUGS)):  # noqa: E501  # fmt: skip
            text = text.replace(word, word + b"%d" % rng.randrange(many))
        return text

    def _hospital(self) -> list[bytes]:
        """Whom and what the others refer to."""
        rng, found = self.rng, []
        for n in range(PEOPLE):
            found.append({"resourceType": "Patient", "id": f"p{n}", "birthDate": "1950"})
        for n in range(STAYS):
            end = rng.choice((None, "2019-03-05", "2019-03-04T10:30:00-05:00", "2020-01-01"))
            period = {"start": "2019-03-01", "end": end}
            whose = {"reference": f"Patient/p{n % PEOPLE}"}
            found.append({"resourceType": "Encounter", "id": f"e{n}", "subject": whose, "period": period})  # noqa: E501  # fmt: skip
        for n, whole in enumerate(("Medication/m3", "Medication/m0")):
            parts = [{"itemReference": {"reference": whole}}] * (n + 1)
            if n == 0:
                parts.append({"itemCodeableConcept": {"text": "water"}})
            found.append({"resourceType": "Medication", "id": f"m{n}", "ingredient": parts})
        for n in range(2, DRUGS - 1):
            found.append({"resourceType": "Medication", "id": f"m{n}", "code": {"text": f"drug {n}"}})  # noqa: E501  # fmt: skip
        return [json.dumps(record).encode() for record in found]

    def write(self, folder: Path, lines: list[bytes]) -> dict[str, bytes]:
        """The lines in files of several kinds; what is in each, by name."""
        packs: dict[str, Callable[[bytes], bytes]] = {
            "a.ndjson": bytes,
            "b.ndjson.gz": partial(gzip.compress, compresslevel=1, mtime=0),
            "sub/c.jsonl.zst": partial(pa.Codec("zstd").compress, asbytes=True),
            "sub/d.NDJSON": lambda text: b"\xef\xbb\xbf" + text,
            "e.json": bytes,
        }
        bundle = b'{"resourceType":\n"Bundle",\n"entry":[]}\n'
        end = self.rng.choice((b"\n", b"\r\n", b"\n\n", b"\n  "))
        texts = {name: b"\n".join(lines[n::4]) + end for n, name in enumerate(list(packs)[:4])}
        texts["e.json"] = bundle
        for name, text in texts.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(packs[name](text))
        return texts
