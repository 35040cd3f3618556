"""Who a record is about: references to ids, and FHIR ids to MEDS subject ids."""

from functools import lru_cache
from hashlib import blake2b
from typing import Final, NamedTuple

SUBJECT_BITS: Final = 63
"""Bits of a subject id, which are as good as random."""


class Target(NamedTuple):
    """Where a reference points: the resource type (None where it does not say) and the id."""

    type: str | None
    id: str


@lru_cache(maxsize=1 << 16)
def subject_id(patient_id: str) -> int:
    """The MEDS subject id (a non-negative int64) of a FHIR Patient id.

    A hash instead of a counter, so that any number of workers and sites agree without meeting.

    >>> subject_id("example") == subject_id("example") != subject_id("other")
    True
    """
    return int.from_bytes(blake2b(patient_id.encode(), digest_size=8).digest(), "big") >> 1


@lru_cache(maxsize=1 << 16)
def parse_reference(reference: str) -> Target | None:
    """The target of a literal reference; None for one that names no id (a search, an empty one).

    https://hl7.org/fhir/R4/references.html#literal

    >>> parse_reference("Patient/7")
    Target(type='Patient', id='7')
    >>> parse_reference("https://host/fhir/Patient/7/_history/1")
    Target(type='Patient', id='7')
    >>> parse_reference("urn:uuid:2f0a-11")
    Target(type=None, id='2f0a-11')
    >>> parse_reference("#med")
    Target(type='#', id='med')
    >>> parse_reference("Patient?identifier=x") is None
    True
    """
    text = reference.strip()
    if text.startswith("#"):
        return Target("#", text[1:]) if len(text) > 1 else None
    if text.startswith(("urn:uuid:", "urn:oid:")):
        return Target(None, text.rsplit(":", 1)[1]) if not text.endswith(":") else None
    if "?" in text:
        return None
    parts = text.split("/_history/", 1)[0].rstrip("/").split("/")
    if not parts[-1]:
        return None
    return Target(parts[-2] if len(parts) > 1 else None, parts[-1])
