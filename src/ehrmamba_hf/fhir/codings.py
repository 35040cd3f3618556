"""Code systems and their short names, and the one form in which a code is written.

The registry is systems.yaml, beside this file; a site's own file adds to it.
"""

import re
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

import msgspec

from ehrmamba_hf.errors import InputError

LOCAL: Final = "LOCAL"
"""A coding that names no system."""
TEXT: Final = "TEXT"
"""A concept without any code: its text, lower case, spaces collapsed, at most 100 characters."""
PACKAGED: Final = Path(__file__).with_name("systems.yaml")

_NAME: Final = re.compile("[A-Z][A-Z0-9_]*")
_OID: Final = re.compile(r"[\d.]+")
_SNOMED: Final = "http://snomed.info/sct"  # its editions and versions follow after a slash
_NOT_TELLING: Final = {"", "codesystem", "fhir", "sid", "id", "valueset", "namingsystem", "www"}


class Concept(msgspec.Struct, frozen=True, eq=False):
    """What an event is about: equal by identity, so that counting them costs nothing."""

    code: str  # "{SYSTEM}/{code}"
    codings: tuple[str, ...]  # all of them, in the record's order; then the one of a mapping table
    display: str | None = None  # of the coding that gave the code
    unknown_systems: tuple[str, ...] = ()  # their URLs


class System(msgspec.Struct, frozen=True):
    name: str
    known: bool


class SystemEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a code system is known: see systems.yaml."""

    urls: tuple[str, ...] = ()
    oids: tuple[str, ...] = ()
    under: str | None = None
    names: tuple[str, ...] = ()
    dotless: bool = False
    source: str = ""


class Preference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


class Systems(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a file of code systems."""

    prefixes: dict[str, tuple[str, ...]] = {}
    systems: dict[str, SystemEntry] = {}
    preference: Preference = Preference()


def read_systems(file: Path) -> Systems:
    """Read a YAML file of code systems. Raises InputError with what is wrong and where."""
    try:
        found = msgspec.yaml.decode(file.read_bytes(), type=Systems)
    except OSError as error:
        raise InputError(f"{file}: expected a YAML file of code systems, {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: expected prefixes, systems and preference: {error}") from None
    known = {*found.prefixes}
    if file != PACKAGED:
        known.update(packaged_systems().prefixes)
    for name, entry in found.systems.items():
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{file}: systems: expected names of capitals, digits and _, found {name!r}"
            )
        if entry.names and entry.under not in known:
            raise InputError(
                f"{file}: systems.{name}.under: expected one of {sorted(known)}, "
                f"found {entry.under!r}"
            )
    return found


@lru_cache(maxsize=1)
def packaged_systems() -> Systems:
    """The registry that comes with the package."""
    return read_systems(PACKAGED)


class Registry:
    """The short names of code systems, from one or more files: the later one's word counts."""

    def __init__(self, *files: Systems) -> None:
        self._prefixes: dict[str, str] = {}  # where a URL starts -> its family
        self._names: dict[str, str] = {}  # URL -> short name
        self._dotless: set[str] = set()
        first: list[str] = []
        last: list[str] = []
        for file in files:
            for family, starts in file.prefixes.items():
                self._prefixes |= {_same_case(start): family for start in starts}
            first = [*file.preference.first, *first]
            last = [*last, *file.preference.last]
        for file in files:
            for name, entry in file.systems.items():
                self._add(name, entry)
        # The longest first: of "x/" and "x/mimic-", the latter tells more.
        self._starts = sorted(self._prefixes, key=len, reverse=True)
        last = [name for name in dict.fromkeys(last) if name not in files[-1].preference.first]
        order = [name for name in dict.fromkeys(first) if name not in last]
        self._others = len(order)
        self._ranks = {name: rank for rank, name in enumerate(order)}
        self._ranks |= {name: len(order) + 1 + rank for rank, name in enumerate(last)}

    def _add(self, name: str, entry: SystemEntry) -> None:
        self._names |= {_key(url): name for url in (*entry.urls, *entry.oids)}
        for start, family in self._prefixes.items():
            if family == entry.under:
                self._names |= {f"{start}{_same_case(rest)}": name for rest in entry.names}
        if entry.dotless:
            self._dotless.add(name)

    def system(self, url: str | None) -> System:
        """The short name of a code system, and whether the registry has it.

        A version ("|2.74"), the case, a closing slash and http or https make no difference. An
        unknown URL gets a name made of the last two telling parts of it (the host counts as one),
        or of an OID its numbers, and of a hash of all of it: the same on every machine and in
        every run, and no other system's.

        >>> registry = Registry(packaged_systems())
        >>> registry.system("urn:oid:2.16.840.1.113883.6.1").name
        'LOINC'
        >>> registry.system("http://fhir.mimic.mit.edu/CodeSystem/d-labitems").name
        'MIMIC_LAB'
        >>> registry.system("https://hospital.org/fhir/CodeSystem/lab-items")
        System(name='HOSPITAL_ORG_LAB_ITEMS_1599E36F', known=False)
        >>> registry.system(None).name
        'LOCAL'
        """
        key = _key(url or "")
        if not key:
            return System(LOCAL, True)
        if key.startswith(f"{_SNOMED}/"):
            key = _SNOMED
        if key in self._names:
            return System(self._names[key], True)
        for start in self._starts:
            if key.startswith(start):
                family, rest = self._prefixes[start], key.removeprefix(start)
                return _unknown(f"{family}_{rest}", f"{family}/{rest}")
        path = key.removeprefix("urn:").split("://", 1)[-1].split("/")
        return _unknown("_".join([part for part in path if part not in _NOT_TELLING][-2:]), key)

    def knows(self, name: str) -> bool:
        """Whether a short name is one of the registry's."""
        return name in self._names.values() or name in (LOCAL, TEXT)

    def rank(self, name: str) -> int:
        """The place of a system in the order of preference: the lowest gives the code."""
        return self._ranks.get(name, self._others)

    def coding(self, name: str, code: str) -> str:
        """`{SYSTEM}/{code}`, where dots mean nothing without them and in capitals.

        ICD codes are written with a dot and without, and MIMIC's are without.

        >>> registry = Registry(packaged_systems())
        >>> registry.coding("ICD10CM", "e11.9"), registry.coding("LOINC", "2345-7")
        ('ICD10CM/E119', 'LOINC/2345-7')
        """
        if name in self._dotless:
            return f"{name}/{code.replace('.', '').upper()}"
        return f"{name}/{code}"


def _key(url: str) -> str:
    key = _same_case(url).split("|", 1)[0].strip().rstrip("/")
    return f"urn:oid:{key}" if _OID.fullmatch(key) else key  # an OID that lost its prefix


def _same_case(url: str) -> str:
    return url.strip().lower().replace("https://", "http://")


def _unknown(readable: str, key: str) -> System:
    """The hash tells apart what reads alike, and all of these from the names of a registry."""
    word = re.sub("[^A-Z0-9]+", "_", readable.upper()).strip("_")
    if not word[:1].isalpha():
        word = f"SYSTEM_{word}".rstrip("_")
    return System(f"{word}_{blake2b(key.encode(), digest_size=4).hexdigest().upper()}", False)
