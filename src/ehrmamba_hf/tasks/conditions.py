"""Groups of diagnosis codes: the three conditions of the paper (section 4.1 and appendix B.2).

ICD-10-CM blocks: https://www.cms.gov/medicare/coding-billing/icd-10-codes; SNOMED CT codes are
those that Synthea uses, where a source has no ICD code. More codes can be given by a file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ehrmamba_hf.errors import InputError

ICD_SYSTEMS = ("ICD10", "ICD9")


@dataclass(frozen=True)
class CodeGroup:
    """A named group of codes.

    Attributes:
        title: for reports.
        codes: system to codes. ICD codes are prefixes, compared without dots; codes of any other
            system are compared whole. `ICD10CM` and `ICD9CM` stand for all national editions, but
            never for the procedure codes (`ICD10PCS`).
    """

    title: str
    codes: Mapping[str, tuple[str, ...]]

    def matches(self, codings: Iterable[str]) -> bool:
        """Whether any of the codings, as ``SYSTEM/code``, is in the group.

        >>> HYPERTENSION.matches(["ICD9CM/401.9"]), HYPERTENSION.matches(["ICD10PCS/I10"])
        (True, False)
        """
        return any(self._holds(coding) for coding in codings)

    def _holds(self, coding: str) -> bool:
        system, _, code = coding.partition("/")
        edition = _edition(system)
        if edition is None:
            return code in self.codes.get(system, ())
        return _plain(code).startswith(tuple(self.codes.get(edition, ())))


def _edition(system: str) -> str | None:
    """The key under which the codes of an ICD edition stand; None for any other system."""
    if system.endswith("PCS"):
        return None
    return next((f"{icd}CM" for icd in ICD_SYSTEMS if system.startswith(icd)), None)


def _plain(code: str) -> str:
    return code.replace(".", "").upper()


HYPERTENSION = CodeGroup(
    "Hypertension coded in the stay",
    {
        "ICD10CM": ("I10", "I11", "I12", "I13", "I15", "I16"),
        "ICD9CM": ("401", "402", "403", "404", "405"),
        "SNOMED": ("38341003", "59621000"),
    },
)
FLUID_DISORDERS = CodeGroup(
    "A fluid, electrolyte or acid-base disorder coded in the stay",
    {"ICD10CM": ("E86", "E87"), "ICD9CM": ("276",)},
)
LIPID_DISORDERS = CodeGroup(
    "A disorder of lipid metabolism coded in the stay",
    {"ICD10CM": ("E78",), "ICD9CM": ("272",), "SNOMED": ("55822004", "302870006")},
)


def extend_group(group: CodeGroup, more: Mapping[str, Iterable[str]]) -> CodeGroup:
    """A group with more codes.

    >>> extend_group(LIPID_DISORDERS, {"SNOMED": ["267432004"]}).matches(["SNOMED/267432004"])
    True

    Raises:
        InputError: a text in place of a list.
    """
    codes = {system: tuple(known) for system, known in group.codes.items()}
    for system, added in more.items():
        if isinstance(added, str):  # its letters would be taken for codes
            raise InputError(f"more codes: {system}: expected a list of codes, found {added!r:.80}")
        edition = _edition(system)
        plain = map(str, added) if edition is None else (_plain(str(code)) for code in added)
        codes[edition or system] = (*codes.get(edition or system, ()), *plain)
    return CodeGroup(group.title, codes)


def read_more_codes(file: Path) -> dict[str, dict[str, list[str]]]:
    """Read a YAML file of more codes: ``condition_0: {SNOMED: [38341003]}``.

    Codes are taken as they are written, in quotes or not: 042 and 272.40 keep their zeros.

    Raises:
        InputError: no file, no YAML, or anything but task to system to a list of codes.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())
        raise InputError(f"{file}: expected a YAML file of more codes, found: {found}") from None
    for task, systems in _items(content, "task -> system -> list of codes", f"{file}"):
        for system, codes in _items(systems, "system -> list of codes", f"{file}: {task}"):
            listed = isinstance(codes, list) and codes
            if not listed or not all(isinstance(c, str) and c.strip(" .") for c in codes):
                raise InputError(
                    f"{file}: {task}: {system}: expected a list of codes, found {codes!r:.80}"
                )
    return content


def _items(content: Any, expected: str, place: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(content, dict) or not content:
        raise InputError(f"{place}: expected {expected}, found {content!r:.80}")
    return content.items()
