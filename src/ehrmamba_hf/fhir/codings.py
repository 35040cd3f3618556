"""Code systems and their short names, and which of a concept's codings becomes its code.

An event's code is `{SYSTEM}/{code}`. All codings of a record are kept beside it; the code is the
first by PREFERENCE, which puts what classifies (ICD, LOINC, RxNorm, SNOMED) before a hospital's own
codes, and these before package codes (NDC), which split one drug into hundreds.
"""

import re
from functools import lru_cache
from typing import Final

import msgspec

from ehrmamba_hf.fhir.resources import CodeableConcept

LOCAL: Final = "LOCAL"
"""A coding that names no system."""
TEXT: Final = "TEXT"
"""A concept without any code: its text, lower case, spaces collapsed, at most 100 characters."""

# Sources: https://hl7.org/fhir/R4/terminologies-systems.html and https://terminology.hl7.org
_SYSTEMS: Final[dict[str, tuple[str, ...]]] = {
    "LOINC": ("http://loinc.org", "urn:oid:2.16.840.1.113883.6.1"),
    "SNOMED": ("http://snomed.info/sct", "urn:oid:2.16.840.1.113883.6.96"),
    "RXNORM": ("http://www.nlm.nih.gov/research/umls/rxnorm", "urn:oid:2.16.840.1.113883.6.88"),
    "NDC": ("http://hl7.org/fhir/sid/ndc", "urn:oid:2.16.840.1.113883.6.69"),
    "ICD10CM": ("http://hl7.org/fhir/sid/icd-10-cm", "urn:oid:2.16.840.1.113883.6.90"),
    "ICD10PCS": (
        "http://www.cms.gov/Medicare/Coding/ICD10",
        "http://hl7.org/fhir/sid/icd-10-pcs",
        "urn:oid:2.16.840.1.113883.6.4",
    ),
    "ICD9CM": ("http://hl7.org/fhir/sid/icd-9-cm", "urn:oid:2.16.840.1.113883.6.103"),
    "ICD9PCS": (
        "http://www.cms.gov/Medicare/Coding/ICD9",
        "http://hl7.org/fhir/sid/icd-9-pcs",
        "urn:oid:2.16.840.1.113883.6.104",
    ),
    "ICD10": ("http://hl7.org/fhir/sid/icd-10", "urn:oid:2.16.840.1.113883.6.3"),
    "ICD10GM": (
        "http://fhir.de/CodeSystem/bfarm/icd-10-gm",
        "http://fhir.de/CodeSystem/dimdi/icd-10-gm",
        "urn:oid:1.2.276.0.76.5.409",
    ),
    "ICD11": ("http://id.who.int/icd/release/11/mms",),
    "CPT": ("http://www.ama-assn.org/go/cpt", "urn:oid:2.16.840.1.113883.6.12"),
    "HCPCS": (
        "https://www.cms.gov/Medicare/Coding/HCPCSReleaseCodeSets",
        "urn:oid:2.16.840.1.113883.6.285",
    ),
    "OPS": ("http://fhir.de/CodeSystem/bfarm/ops", "http://fhir.de/CodeSystem/dimdi/ops"),
    "ATC": (
        "http://www.whocc.no/atc",
        "http://fhir.de/CodeSystem/bfarm/atc",
        "urn:oid:2.16.840.1.113883.6.73",
    ),
    "DMD": ("https://dmd.nhs.uk",),
    "PZN": ("http://fhir.de/CodeSystem/ifa/pzn",),
    "UNII": ("http://fdasis.nlm.nih.gov", "urn:oid:2.16.840.1.113883.4.9"),
    "CVX": ("http://hl7.org/fhir/sid/cvx", "urn:oid:2.16.840.1.113883.12.292"),
    "UCUM": ("http://unitsofmeasure.org", "urn:oid:2.16.840.1.113883.6.8"),
    "DICOM": ("http://dicom.nema.org/resources/ontology/DCM", "urn:oid:1.2.840.10008.2.16.4"),
}

# MIMIC-IV on FHIR moved its code systems from one host to another between 2.0 and 2.1, and the
# names lost or gained a "mimic-". https://mimic.mit.edu/fhir/
_MIMIC_HOSTS: Final = ("http://mimic.mit.edu/", "http://fhir.mimic.mit.edu/")
_MIMIC_SYSTEMS: Final = {
    "d-labitems": "MIMIC_LAB",
    "chartevents-d-items": "MIMIC_CHART",
    "outputevents-d-items": "MIMIC_OUTPUT",
    "datetimeevents-d-items": "MIMIC_DATETIME",
    "d-items": "MIMIC_ICU",
    "procedureevents-d-items": "MIMIC_ICU",
    "medication-formulary-drug-cd": "MIMIC_DRUG",
    "medication-name": "MIMIC_DRUG_NAME",
    "medication-icu": "MIMIC_MED_ICU",
    "medication-mix": "MIMIC_MED_MIX",
    "medication-poe-iv": "MIMIC_MED_POE_IV",
    "diagnosis-icd9": "ICD9CM",
    "diagnosis-icd10": "ICD10CM",
    "procedure-icd9": "ICD9PCS",
    "procedure-icd10": "ICD10PCS",
}

PREFERENCE: Final = (
    *("ICD10CM", "ICD9CM", "ICD10GM", "ICD10", "ICD11", "ICD10PCS", "ICD9PCS", "CPT", "HCPCS"),
    *("OPS", "LOINC", "RXNORM", "ATC", "CVX", "SNOMED", "DMD", "MIMIC_DRUG", "MIMIC_DRUG_NAME"),
)
"""First come these, in this order; then any other system, in the record's order; then _LAST."""
_LAST: Final = (LOCAL, "UNII", "PZN", "NDC", TEXT)

_BY_URL: Final = {
    url.lower().replace("https://", "http://"): name
    for name, urls in _SYSTEMS.items()
    for url in urls
}
_RANK: Final = {
    **{name: rank for rank, name in enumerate(PREFERENCE)},
    **{name: len(PREFERENCE) + 1 + rank for rank, name in enumerate(_LAST)},
}
_NOT_TELLING: Final = {"", "codesystem", "fhir", "sid", "id", "valueset", "namingsystem", "www"}


class Concept(msgspec.Struct, frozen=True, eq=False):
    """What an event is about: equal by identity, so that counting them costs nothing."""

    code: str  # "{SYSTEM}/{code}"
    codings: tuple[str, ...]  # all of them, in the record's order
    display: str | None = None  # of the coding that gave the code
    unknown_systems: tuple[str, ...] = ()


class System(msgspec.Struct, frozen=True):
    name: str
    known: bool


@lru_cache(maxsize=4096)
def code_system(url: str | None) -> System:
    """The short name of a code system, and whether the registry has it.

    An unknown URL gets a name made of the last two telling parts of it (the host counts as one), an
    unknown OID its numbers: the same on every machine and in every run.

    >>> code_system("http://loinc.org").name, code_system("urn:oid:2.16.840.1.113883.6.1").name
    ('LOINC', 'LOINC')
    >>> code_system("http://fhir.mimic.mit.edu/CodeSystem/d-labitems").name
    'MIMIC_LAB'
    >>> code_system("https://hospital.org/fhir/CodeSystem/lab-items")
    System(name='HOSPITAL_ORG_LAB_ITEMS', known=False)
    >>> code_system(None).name
    'LOCAL'
    """
    text = (url or "").strip().rstrip("/")
    if not text:
        return System(LOCAL, True)
    key = text.lower().replace("https://", "http://")
    if re.fullmatch(r"[\d.]+", key):  # an OID that lost its prefix
        key = f"urn:oid:{key}"
    key = key.split("|", 1)[0]
    if key.startswith("http://snomed.info/sct/"):  # an edition of it
        key = "http://snomed.info/sct"
    if key in _BY_URL:
        return System(_BY_URL[key], True)
    if key.startswith(_MIMIC_HOSTS):
        name = key.rsplit("/", 1)[1].removeprefix("mimic-")
        return System(_MIMIC_SYSTEMS.get(name, f"MIMIC_{_word(name)}"), name in _MIMIC_SYSTEMS)
    if key.startswith("urn:"):
        return System(_word(key.removeprefix("urn:")), False)
    parts = [p for p in key.split("://", 1)[-1].split("/") if p not in _NOT_TELLING]
    return System(_word("_".join(parts[-2:])) or LOCAL, False)


def concept_of(concept: CodeableConcept) -> Concept | None:
    """The Concept of a CodeableConcept; None where it has neither a code nor a text.

    >>> from ehrmamba_hf.fhir.resources import Coding
    >>> ndc = Coding(system="http://hl7.org/fhir/sid/ndc", code="00002821501")
    >>> own = Coding(system="https://h.org/drugs", code="INS")
    >>> concept_of(CodeableConcept(coding=[ndc, own])).code
    'H_ORG_DRUGS/INS'
    >>> concept_of(CodeableConcept(text=" Aspirin  81 mg")).code
    'TEXT/aspirin 81 mg'
    """
    return _concept(
        tuple([(c.system, c.code, c.display) for c in concept.coding or ()]), concept.text
    )


@lru_cache(maxsize=1 << 17)
def _concept(
    codings: tuple[tuple[str | None, str | None, str | None], ...], text: str | None
) -> Concept | None:
    names: dict[str, str | None] = {}
    best: tuple[int, str] | None = None
    unknown = []
    for url, code, display in codings:
        if not (code and code.strip()):
            continue
        system = code_system(url)
        name = f"{system.name}/{code.strip()}"
        names.setdefault(name, display)
        if not system.known and url:
            unknown.append(url)
        rank = _RANK.get(system.name, len(PREFERENCE))
        if best is None or rank < best[0]:
            best = rank, name
    if best is None:
        words = text or next((display for _, _, display in codings if display), None) or ""
        words = " ".join(words.lower().split())[:100]
        return Concept(f"{TEXT}/{words}", (f"{TEXT}/{words}",)) if words else None
    return Concept(best[1], tuple(names), names[best[1]], tuple(unknown))


def _word(text: str) -> str:
    return re.sub(r"[^A-Z0-9]+", "_", text.upper()).strip("_")
