"""What a concept is called and in which unit its values stand, for one site.

A Codebook holds what a site adds to the packaged registry: code systems, mapping tables (a
hospital's own codes to LOINC, say) and unit conversions. Without any, it is the registry alone:
nothing is mapped or converted that nobody asked for.
"""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir.codings import (
    TEXT,
    Concept,
    Registry,
    System,
    Systems,
    packaged_systems,
    read_systems,
)
from ehrmamba_hf.fhir.resources import CodeableConcept

COMMON_UNITS: Final = Path(__file__).with_name("units.csv")
"""Conversions of common laboratory units; each row says where its factor comes from."""

_Codings = tuple[tuple[str | None, str | None, str | None], ...]  # system, code, display
_CODE: Final = re.compile(r"([A-Z][A-Z0-9_]*)/(\S.*)")
_BY_CODE: Final = ("from", "to")
_BY_SYSTEM: Final = ("source_system", "source_code", "target_system", "target_code")
_UNIT_COLUMNS: Final = ("code", "from_unit", "to_unit", "factor", "offset", "source")


class Conversion(NamedTuple):
    """A value in another unit: value x factor + offset."""

    unit: str
    factor: float
    offset: float

    def __call__(self, value: float) -> float:
        """
        >>> round(Conversion("Cel", 5 / 9, -160 / 9)(98.6), 9)
        37.0
        """
        return value * self.factor + self.offset


class Codebook:
    """The registry, and what a site adds to it. It pickles, so that workers can share it."""

    def __init__(
        self,
        systems: Systems = Systems(),  # noqa: B008 - immutable
        mappings: Mapping[str, str] = {},
        conversions: Mapping[tuple[str, str], Conversion] = {},
    ) -> None:
        """`systems` adds to the packaged registry. `mappings`: `{SYSTEM}/{code}` to another.
        `conversions`: by (code, unit)."""
        self._systems = systems
        self._mappings = dict(mappings)
        self._conversions = dict(conversions)
        self.system = lru_cache(maxsize=4096)(self._system)
        self._concept = lru_cache(maxsize=1 << 17)(self._read)
        self._answered = lru_cache(maxsize=1 << 16)(_with_unknown)

    @classmethod
    def load(
        cls,
        systems: Path | None = None,
        mappings: Sequence[Path] = (),
        units: Literal["common"] | Path | None = None,
    ) -> "Codebook":
        """A Codebook from files. Raises InputError with the file, the line and what is wrong.

        Args:
            systems: YAML of the form of systems.yaml, beside this file.
            mappings: CSV with the columns `from` and `to` (`MIMIC_LAB/50912`, `LOINC/2160-0`), or
                `source_system`, `source_code`, `target_system`, `target_code` (systems by URL, OID
                or short name). Further columns are for the reader. A code is mapped once: what it
                is mapped to is not looked up again.
            units: CSV with the columns of units.csv, or "common" for that.
        """
        extra = read_systems(systems) if systems else Systems()
        registry = Registry(packaged_systems(), extra)
        mapped: dict[str, str] = {}
        for file in mappings:
            _read_mappings(file, registry, mapped)
        table = COMMON_UNITS if units == "common" else units
        return cls(extra, mapped, _read_conversions(table, registry) if table else {})

    def __reduce__(self) -> tuple[type["Codebook"], tuple[object, ...]]:
        return Codebook, (self._systems, self._mappings, self._conversions)

    @cached_property
    def registry(self) -> Registry:
        """The code systems by name; made when first asked for, since it reads a file."""
        return Registry(packaged_systems(), self._systems)

    def concept(self, concept: CodeableConcept) -> Concept | None:
        """The Concept of a CodeableConcept; None where it has neither a code nor a text.

        The preferred coding gives the code. Where a mapping table has one of the codings (of
        several, the preferred one), what it is mapped to is the code, and joins the codings.

        >>> from ehrmamba_hf.fhir.resources import Coding
        >>> ndc = Coding(system="http://hl7.org/fhir/sid/ndc", code="00002821501")
        >>> own = Coding(system="https://h.org/drugs", code="INS")
        >>> Codebook().concept(CodeableConcept(coding=[ndc, own])).code
        'H_ORG_DRUGS_CD48C4E9/INS'
        >>> book = Codebook(mappings={"H_ORG_DRUGS_CD48C4E9/INS": "RXNORM/5856"})
        >>> book.concept(CodeableConcept(coding=[own])).codings
        ('H_ORG_DRUGS_CD48C4E9/INS', 'RXNORM/5856')
        >>> Codebook().concept(CodeableConcept(text=" Aspirin  81 mg")).code
        'TEXT/aspirin 81 mg'
        """
        return self._concept(
            tuple([(c.system, c.code, c.display) for c in concept.coding or ()]), concept.text
        )

    def answered(self, about: Concept, answer: CodeableConcept) -> Concept:
        """`about`, with the unknown systems of its coded answer among its own.

        >>> from ehrmamba_hf.fhir.resources import Coding
        >>> own = CodeableConcept([Coding("https://h.org/answers", "yes")])
        >>> Codebook().answered(Concept("LOINC/1", ()), own).unknown_systems
        ('https://h.org/answers',)
        """
        found = self.concept(answer)
        unknown = found.unknown_systems if found else ()
        return self._answered(about, unknown) if unknown else about

    @property
    def converts(self) -> bool:
        """Whether any unit is converted."""
        return bool(self._conversions)

    def conversion(self, code: str, unit: str | None) -> Conversion | None:
        """How the values of a code in a unit are converted, if they are."""
        return self._conversions.get((code, unit)) if self._conversions and unit else None

    def fingerprint(self) -> str:
        """A hash of all that decides codes and units: equal Codebooks read records equally.

        >>> Codebook().fingerprint() == Codebook(mappings={"A/1": "LOINC/1"}).fingerprint()
        False
        """
        content = (
            packaged_systems(),
            self._systems,
            sorted(self._mappings.items()),
            sorted(self._conversions.items()),
        )
        return blake2b(msgspec.json.encode(content), digest_size=16).hexdigest()

    def _system(self, url: str | None) -> System:
        return self.registry.system(url)

    def _read(self, codings: _Codings, text: str | None) -> Concept | None:
        displays: dict[str, str | None] = {}
        ranks: dict[str, int] = {}
        unknown = []
        for url, code, display in codings:
            # https://hl7.org/fhir/R4/datatypes.html#code: no white space but single spaces
            code = " ".join((code or "").split())
            if not code:
                continue
            system = self.system(url)
            name = self.registry.coding(system.name, code)
            if name not in displays:
                displays[name] = display
                ranks[name] = self.registry.rank(system.name)
            if not system.known and url:
                unknown.append(url)
        if not displays:
            words = text or next((display for _, _, display in codings if display), None) or ""
            words = " ".join(words.lower().split())[:100]
            if not words:
                return None
            ranks[f"{TEXT}/{words}"] = 0
        return self._named(ranks, displays, tuple(unknown))

    def _named(
        self, ranks: Mapping[str, int], displays: Mapping[str, str | None], unknown: tuple[str, ...]
    ) -> Concept:
        """The Concept of codings in the record's order, by their rank and the mapping tables."""
        preferred = sorted(ranks, key=ranks.__getitem__)  # stable: of one rank, the first written
        source = next((name for name in preferred if name in self._mappings), preferred[0])
        code = self._mappings.get(source, source)
        codings = tuple(ranks) if code in ranks else (*ranks, code)
        return Concept(code, codings, displays.get(source), unknown)


def _with_unknown(concept: Concept, unknown: tuple[str, ...]) -> Concept:
    return msgspec.structs.replace(concept, unknown_systems=(*concept.unknown_systems, *unknown))


def _read_mappings(file: Path, registry: Registry, mapped: dict[str, str]) -> None:
    for where, row in _rows(file, (_BY_CODE, _BY_SYSTEM)):
        if "from" in row:
            source, target = (_coding(row[name], registry, where, name) for name in _BY_CODE)
        else:
            source = _joined(row["source_system"], row["source_code"], registry)
            target = _joined(row["target_system"], row["target_code"], registry)
        if not registry.knows(target.partition("/")[0]):
            raise InputError(
                f"{where}: expected a target of a known code system, found {target!r}; "
                "a file of code systems can name it"
            )
        if mapped.setdefault(source, target) != target:
            raise InputError(
                f"{where}: expected one target a code, found {target!r} for {source!r} beside "
                f"{mapped[source]!r}"
            )


def _read_conversions(file: Path, registry: Registry) -> dict[tuple[str, str], Conversion]:
    found: dict[tuple[str, str], Conversion] = {}
    for where, row in _rows(file, (_UNIT_COLUMNS,)):
        key = (_coding(row["code"], registry, where, "code"), row["from_unit"])
        factor = _number(row["factor"], where, "factor")
        if factor <= 0:  # below zero, "<" would become ">"
            raise InputError(f"{where}: factor: expected a number over 0, found {row['factor']!r}")
        conversion = Conversion(row["to_unit"], factor, _number(row["offset"], where, "offset"))
        if found.setdefault(key, conversion) != conversion:
            raise InputError(f"{where}: expected one row a code and unit, found another of {key}")
    return found


def _rows(file: Path, headers: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV with one of the headers, each with where it stands; no cell is empty."""
    expected = " or ".join(",".join(header) for header in headers)
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, strict=True)
            names = [name.strip() for name in table.fieldnames or ()]
            table.fieldnames = names
            header = next((h for h in headers if set(h) <= set(names)), None)
            if header is None:
                raise InputError(f"{file}:1: expected the columns {expected}, found {names}")
            for row in table:
                where = f"{file}:{table.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{where}: expected {len(names)} cells, found another number")
                cells = {name: row[name].strip() for name in header}
                for name, cell in cells.items():
                    if not cell:
                        raise InputError(f"{where}: {name}: expected a text, found none")
                yield where, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: expected a CSV file in UTF-8: {error}") from None


def _coding(text: str, registry: Registry, where: str, name: str) -> str:
    match = _CODE.fullmatch(text)
    if match is None:
        raise InputError(f"{where}: {name}: expected SYSTEM/code, found {text!r}")
    return registry.coding(match[1], match[2])


def _joined(system: str, code: str, registry: Registry) -> str:
    name = system if registry.knows(system) else registry.system(system).name
    return registry.coding(name, code)


def _number(text: str, where: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: {name}: expected a number, found {text!r}")
    return number
