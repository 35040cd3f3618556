"""Code systems by URL, OID and MIMIC host; which coding gives the code; none is lost."""

import pytest

from ehrmamba_hf.fhir.codings import code_system, concept_of
from ehrmamba_hf.fhir.resources import CodeableConcept, Coding


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://loinc.org", "LOINC"),
        ("https://loinc.org/", "LOINC"),
        ("urn:oid:2.16.840.1.113883.6.1", "LOINC"),
        ("2.16.840.1.113883.6.1", "LOINC"),
        ("http://loinc.org|2.74", "LOINC"),
        ("http://snomed.info/sct/731000124108/version/20230901", "SNOMED"),
        ("http://hl7.org/fhir/sid/icd-10-cm", "ICD10CM"),
        ("http://www.cms.gov/Medicare/Coding/ICD10", "ICD10PCS"),
        ("urn:oid:2.16.840.1.113883.6.104", "ICD9PCS"),
        ("http://hl7.org/fhir/sid/cvx", "CVX"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-d-labitems", "MIMIC_LAB"),
        ("http://fhir.mimic.mit.edu/CodeSystem/d-labitems", "MIMIC_LAB"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-diagnosis-icd9", "ICD9CM"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-procedure-icd10", "ICD10PCS"),
        ("http://fhir.mimic.mit.edu/CodeSystem/diagnosis-icd10", "ICD10CM"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-d-items", "MIMIC_ICU"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-medication-formulary-drug-cd", "MIMIC_DRUG"),  # noqa: E501
        (None, "LOCAL"),
        ("  ", "LOCAL"),
    ],
)  # fmt: skip
def test_known_systems(url, name):
    assert code_system(url).name == name
    assert code_system(url).known


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://hospital.org/fhir/CodeSystem/lab-items", "HOSPITAL_ORG_LAB_ITEMS"),
        ("https://other.org/fhir/CodeSystem/lab-items", "OTHER_ORG_LAB_ITEMS"),
        ("https://hospital.org/codes/drugs/", "CODES_DRUGS"),
        ("urn:oid:1.2.840.114350.1.13", "OID_1_2_840_114350_1_13"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-microbiology-test", "MIMIC_MICROBIOLOGY_TEST"),  # noqa: E501
        ("lab", "LAB"),
        ("://", "LOCAL"),
    ],
)  # fmt: skip
def test_unknown_systems_get_a_stable_name(url, name):
    assert code_system(url).name == name
    assert not code_system(url).known


def concept(*codings: tuple[str | None, str | None], text: str | None = None) -> CodeableConcept:
    return CodeableConcept([Coding(system, code) for system, code in codings], text)


def test_the_code_is_the_preferred_coding_and_all_are_kept_in_their_order():
    mimic = "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-medication-"
    found = concept_of(
        concept(
            ("http://hl7.org/fhir/sid/ndc", "00002821501"),
            (f"{mimic}name", "Insulin"),
            (f"{mimic}formulary-drug-cd", "INRHI"),
        )
    )
    assert found.code == "MIMIC_DRUG/INRHI"
    assert found.codings == ("NDC/00002821501", "MIMIC_DRUG_NAME/Insulin", "MIMIC_DRUG/INRHI")


def test_preference_puts_standards_before_local_before_packages():
    local = ("https://h.org/codes/x", "a")
    assert concept_of(concept((None, "b"), local)).code == "CODES_X/a"
    assert concept_of(concept(local, ("http://loinc.org", "1-1"))).code == "LOINC/1-1"
    snomed = ("http://snomed.info/sct", "1")
    icd = ("http://hl7.org/fhir/sid/icd-10-cm", "I10")
    assert concept_of(concept(snomed, icd)).code == "ICD10CM/I10"


def test_repeated_codings_and_codings_without_a_code():
    twice = ("http://loinc.org", "1-1")
    assert concept_of(concept(twice, ("http://loinc.org", None), twice)).codings == ("LOINC/1-1",)


def test_without_a_code_the_text_stands_and_without_a_text_nothing():
    assert concept_of(concept(text="  Chest\n X-ray ")).code == "TEXT/chest x-ray"
    assert concept_of(CodeableConcept([Coding("http://loinc.org", None, "Glucose")])).code == (
        "TEXT/glucose"
    )
    assert concept_of(concept(text="   ")) is None
    assert concept_of(concept((None, " "))) is None


def test_unknown_systems_are_told():
    found = concept_of(concept(("https://h.org/codes/x", "a"), ("http://loinc.org", "1-1")))
    assert found.unknown_systems == ("https://h.org/codes/x",)
