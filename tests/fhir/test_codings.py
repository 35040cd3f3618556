"""Code systems by URL, OID and MIMIC host; which coding gives the code; none is lost."""

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.codings import packaged_systems, read_systems
from ehrmamba_hf.fhir.resources import CodeableConcept, Coding

BOOK = Codebook()
code_system, concept_of = BOOK.system, BOOK.concept


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://loinc.org", "LOINC"),
        ("https://loinc.org/", "LOINC"),
        ("urn:oid:2.16.840.1.113883.6.1", "LOINC"),
        ("2.16.840.1.113883.6.1", "LOINC"),
        ("http://loinc.org|2.74", "LOINC"),
        ("http://loinc.org/|2.74", "LOINC"),
        ("http://hl7.org/fhir/sid/icd-9-cm/procedure", "ICD9PCS"),
        ("http://terminology.hl7.org/CodeSystem/v3-NullFlavor", "NULLFLAVOR"),
        ("http://snomed.info/sct/731000124108/version/20230901", "SNOMED"),
        ("http://hl7.org/fhir/sid/icd-10-cm", "ICD10CM"),
        ("http://www.cms.gov/Medicare/Coding/ICD10", "ICD10PCS"),
        ("urn:oid:2.16.840.1.113883.6.104", "ICD9PCS"),
        ("http://hl7.org/fhir/sid/icd-9", "ICD9CM"),
        ("http://terminology.hl7.org/CodeSystem/icd9", "ICD9CM"),
        ("http://terminology.hl7.org/CodeSystem/icd9cm", "ICD9CM"),
        ("urn:oid:2.16.840.1.113883.6.42", "ICD9CM"),
        ("urn:oid:2.16.840.1.113883.6.2", "ICD9CM"),
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
        ("https://hospital.org/fhir/CodeSystem/lab-items", "HOSPITAL_ORG_LAB_ITEMS_1599E36F"),
        ("https://other.org/fhir/CodeSystem/lab-items", "OTHER_ORG_LAB_ITEMS_ADD3C5EC"),
        ("https://hospital.org/codes/drugs/", "CODES_DRUGS_0D4397D8"),
        ("urn:oid:1.2.840.114350.1.13", "OID_1_2_840_114350_1_13_D2FF40CB"),
        ("http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-units", "MIMIC_UNITS_459DA445"),
        ("http://fhir.mimic.mit.edu/CodeSystem/units", "MIMIC_UNITS_459DA445"),
        ("lab", "LAB_D2EDA87B"),
        ("http://1.org/x", "SYSTEM_1_ORG_X_12DA99C8"),
        ("://", "SYSTEM_69410F23"),
    ],
)  # fmt: skip
def test_unknown_systems_get_a_stable_name(url, name):
    assert code_system(url).name == name
    assert not code_system(url).known


def test_no_two_systems_share_a_name():
    alike = (
        *(
            "https://h.org/lab/codes/v1",
            "https://h.org/pharmacy/codes/v1",
            "https://h.org/codes-v1",
        ),
        *("urn:loinc", "loinc", "http://other.org/local", "urn:local", "urn:text"),
        "http://fhir.mimic.mit.edu/CodeSystem/lab",  # MIMIC_LAB is d-labitems
    )
    names = [code_system(url).name for url in alike]
    assert len(set(names)) == len(alike)
    assert not any(BOOK.registry.knows(name) for name in names)
    same = ("http://h.org/lab/codes/v1/", "HTTPS://H.org/lab/codes/v1|2")
    assert {code_system(url).name for url in same} == {names[0]} == {"CODES_V1_E1249D29"}


@pytest.mark.parametrize("name", sorted(packaged_systems().systems))
def test_every_system_of_the_registry_is_found_by_all_that_is_said_of_it(name):
    entry = packaged_systems().systems[name]
    assert entry.source and (entry.urls or entry.oids or entry.names)
    starts = packaged_systems().prefixes.get(entry.under or "", ())
    urls = [*entry.urls, *entry.oids, *(f"urn:oid:{oid}" for oid in entry.oids)]
    urls += [f"{start}{rest}" for start in starts for rest in entry.names]
    assert {BOOK.system(url).name for url in urls} == {name}


MIMIC_HOSTS = (
    "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-",
    "http://fhir.mimic.mit.edu/CodeSystem/",
)


@pytest.mark.parametrize("host", MIMIC_HOSTS)
@pytest.mark.parametrize(
    ("last", "name"),
    [
        ("microbiology-test", "MIMIC_MICROBIOLOGY_TEST"),
        ("microbiology-organism", "MIMIC_MICROBIOLOGY_ORGANISM"),
        ("microbiology-antibiotic", "MIMIC_MICROBIOLOGY_ANTIBIOTIC"),
        ("medication-gsn", "MIMIC_MED_GSN"),
        ("medication-etc", "MIMIC_MED_ETC"),
        ("medication-ndc", "NDC"),
        ("hcpcs-cd", "HCPCS"),
    ],
)
def test_the_systems_of_mimic_on_both_hosts(host, last, name):
    assert code_system(f"{host}{last}").name == name


@pytest.mark.parametrize(
    ("system", "written", "name"),
    [
        ("http://hl7.org/fhir/sid/icd-10-cm", ("E11.9", "E119", "e11.9"), "ICD10CM/E119"),
        ("http://hl7.org/fhir/sid/icd-9-cm", ("401.9", "4019"), "ICD9CM/4019"),
        ("urn:oid:2.16.840.1.113883.6.2", ("401.9", "4019"), "ICD9CM/4019"),
        ("http://www.cms.gov/Medicare/Coding/ICD9", ("38.93", "3893"), "ICD9PCS/3893"),
        ("http://fhir.de/CodeSystem/bfarm/ops", ("5-470.11",), "OPS/5-470.11"),
    ],
)
def test_an_icd_code_is_one_code_with_its_dot_and_without(system, written, name):
    for code in written:
        found = concept_of(concept((system, code)))
        assert (found.code, found.codings) == (name, (name,))


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
    assert concept_of(concept((None, "b"), local)).code == "CODES_X_0C0EF895/a"
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


SITE = """
prefixes: {HOSPITAL: ["https://h.org/cs/"]}
systems:
  HOSPITAL_LAB: {under: HOSPITAL, names: [lab], urls: [urn:h:lab], oids: [1.2.3], source: us}
  LOINC: {urls: [https://loinc.h.org]}
preference: {first: [NDC], last: [SNOMED]}
"""


def test_a_site_adds_to_the_registry(tmp_path):
    file = tmp_path / "systems.yaml"
    file.write_text(SITE)
    book = Codebook(read_systems(file))
    for url in ("https://h.org/cs/lab", "http://H.org/cs/lab|3", "urn:h:lab", "urn:oid:1.2.3"):
        assert (book.system(url).name, book.system(url).known) == ("HOSPITAL_LAB", True)
    assert book.system("https://h.org/cs/x-ray").name.startswith("HOSPITAL_X_RAY_")
    assert not book.system("https://h.org/cs/x-ray").known
    assert (
        book.system("https://loinc.h.org").name == book.system("http://loinc.org").name == "LOINC"
    )
    assert book.system("http://snomed.info/sct").name == "SNOMED"
    ndc, rxnorm = (
        ("http://hl7.org/fhir/sid/ndc", "1"),
        (
            "http://www.nlm.nih.gov/research/umls/rxnorm",
            "2",
        ),
    )
    assert book.concept(concept(rxnorm, ndc)).code == "NDC/1"
    assert BOOK.concept(concept(rxnorm, ndc)).code == "RXNORM/2"
    snomed, own = ("http://snomed.info/sct", "3"), ("urn:h:lab", "4")
    assert book.concept(concept(snomed, own)).code == "HOSPITAL_LAB/4"
    assert BOOK.concept(concept(snomed, own)).code == "SNOMED/3"


def test_white_space_in_a_code_is_a_single_space():
    found = BOOK.concept(concept(("http://loinc.org", " 2345\n \x1f7\t")))
    assert found.codings == ("LOINC/2345 7",)
    assert BOOK.concept(concept(("http://loinc.org", "\x1f \n"))) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("systems: [1]", r"Expected `object`, got `array` - at `\$.systems`"),
        ("systems: {lab: {}}", "systems: expected names of capitals, digits and _, found 'lab'"),
        ("systems: {LAB: {url: [x]}}", "unknown field `url`"),
        (
            "systems: {LAB: {under: H, names: [x]}}",
            r"systems.LAB.under: expected one of \['MIMIC'\]",
        ),
        ("a: {", "expected prefixes, systems and preference"),
        ("\x00", "expected prefixes, systems and preference"),
    ],
)
def test_a_file_of_systems_that_is_wrong(tmp_path, text, message):
    file = tmp_path / "systems.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_systems(file)
    assert str(error.value).startswith(f"{file}: ")
    with pytest.raises(InputError, match="No such file"):
        read_systems(tmp_path / "missing.yaml")
