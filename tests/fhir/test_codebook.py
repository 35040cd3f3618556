"""What a site adds: mapping tables and unit conversions, on request, from files, never invented."""

import csv
import json
import pickle
import re

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.fhir.codebook import COMMON_UNITS, Codebook, Conversion
from ehrmamba_hf.fhir.convert import convert
from ehrmamba_hf.fhir.decoding import decode
from ehrmamba_hf.fhir.resources import CodeableConcept, Coding
from ehrmamba_hf.fhir.rows import Reject, Site
from ehrmamba_hf.fhir.times import Clock

MIMIC_LAB = "http://mimic.mit.edu/fhir/mimic/CodeSystem/mimic-d-labitems"


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file."""

    def write(text: str, name: str = "table.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def concept(*codings: tuple[str, str], text: str | None = None) -> CodeableConcept:
    return CodeableConcept([Coding(system, code) for system, code in codings], text)


def test_a_mapped_code_is_the_code_and_no_coding_is_lost(table):
    book = Codebook.load(
        mappings=[
            table("from,to,note\nMIMIC_LAB/50912,LOINC/2160-0,creatinine\n"),
            table(
                "source_system,source_code,target_system,target_code\n"
                f"{MIMIC_LAB},50931,http://loinc.org,2345-7\n"
                "https://h.org/cs/drugs,INS,RXNORM,5856\n"
                "TEXT,aspirin 81 mg,urn:oid:2.16.840.1.113883.6.88,243670\n",
                "more.csv",
            ),
        ]
    )
    found = book.concept(concept((MIMIC_LAB, "50912")))
    assert (found.code, found.codings) == ("LOINC/2160-0", ("MIMIC_LAB/50912", "LOINC/2160-0"))
    assert book.concept(concept((MIMIC_LAB, "50931"))).code == "LOINC/2345-7"
    assert book.concept(concept(("https://h.org/cs/drugs", "INS"))).code == "RXNORM/5856"
    assert book.concept(concept(text="Aspirin  81 MG")).codings == (
        *("TEXT/aspirin 81 mg", "RXNORM/243670"),
    )
    other = concept((MIMIC_LAB, "1"))
    assert book.concept(other).code == Codebook().concept(other).code == "MIMIC_LAB/1"


def test_of_several_codings_the_preferred_one_that_the_table_has_is_mapped():
    book = Codebook(mappings={"LOCAL/b": "LOINC/2-2", "H_ORG_X_B813EE52/a": "LOINC/1-1"})
    both = concept(("", "b"), ("https://h.org/x", "a"))
    assert book.concept(both).code == "LOINC/1-1"
    assert book.concept(both).codings == ("LOCAL/b", "H_ORG_X_B813EE52/a", "LOINC/1-1")
    coded = concept(("https://h.org/x", "a"), ("http://loinc.org", "1-1"))
    assert book.concept(coded).codings == ("H_ORG_X_B813EE52/a", "LOINC/1-1")


def test_the_unknown_systems_of_a_coded_answer_are_told_with_those_of_its_question():
    book = Codebook()
    about = book.concept(concept(("https://h.org/x", "a")))
    answer, known = concept(("https://h.org/y", "b")), concept(("http://loinc.org", "1-1"))
    found = book.answered(about, answer)
    assert (found.code, found.codings) == (about.code, about.codings)
    assert found.unknown_systems == ("https://h.org/x", "https://h.org/y")
    assert book.answered(about, answer) is found  # one concept, however often it comes
    assert book.answered(about, known) is about


def test_a_target_is_not_mapped_again(table):
    text = "from,to\nLOINC/1-1,LOINC/2-2\nLOINC/2-2,LOINC/3-3\n"
    book = Codebook.load(mappings=[table(text)])
    assert book.concept(concept(("http://loinc.org", "1-1"))).code == "LOINC/2-2"


def test_icd_codes_of_a_table_may_have_their_dots(table):
    book = Codebook.load(mappings=[table("from,to\nICD9CM/401.9,ICD10CM/I10\n")])
    assert book.concept(concept(("http://hl7.org/fhir/sid/icd-9-cm", "4019"))).code == "ICD10CM/I10"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("code,loinc\na,b\n", 1, "expected the columns from,to or source_system"),
        ("", 1, "expected the columns"),
        (
            "from,to\nMIMIC_LAB/1,LOINC/1-1\nMIMIC_LAB 2,LOINC/1-1\n",
            3,
            "from: expected SYSTEM/code",
        ),
        ("from,to\nMIMIC_LAB/1,LOINC\n", 2, "to: expected SYSTEM/code, found 'LOINC'"),
        ("from,to\nMIMIC_LAB/1\n", 2, "expected 2 cells"),
        ("from,to\nMIMIC_LAB/1,LOINC/1,x\n", 2, "expected 2 cells"),
        ("from,to\nMIMIC_LAB/1, \n", 2, "to: expected a text, found none"),
        ("from,to\nMIMIC_LAB/1,LIONC/1-1\n", 2, "expected a target of a known code system"),
        ("from,to\nA/1,LOINC/1-1\nA/1,LOINC/2-2\n", 3, "expected one target a code"),
    ],
)
def test_a_mapping_table_that_is_wrong(table, text, line, message):
    file = table(text)
    with pytest.raises(InputError) as error:
        Codebook.load(mappings=[file])
    assert str(error.value).startswith(f"{file}:{line}: ") and message in str(error.value)


@pytest.mark.parametrize("content", [b"from,to\n\xff,b\n", b'from,to\n"a,b\n'])
def test_a_table_that_is_no_csv_in_utf8(tmp_path, content):
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    with pytest.raises(InputError, match="expected a CSV file in UTF-8"):
        Codebook.load(mappings=[file])
    with pytest.raises(InputError, match="No such file"):
        Codebook.load(mappings=[tmp_path / "missing.csv"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("LOINC/1-1,a,b,0,0,s", "factor: expected a number over 0"),
        ("LOINC/1-1,a,b,-1,0,s", "factor: expected a number over 0"),
        ("LOINC/1-1,a,b,nan,0,s", "factor: expected a number, found 'nan'"),
        ("LOINC/1-1,a,b,2,x,s", "offset: expected a number, found 'x'"),
        ("glucose,a,b,2,0,s", "code: expected SYSTEM/code"),
        ("LOINC/1-1,a,b,2,0,", "source: expected a text"),
        ("LOINC/1-1,a,b,2,0,s\nLOINC/1-1,a,c,2,0,s", "expected one row a code and unit"),
    ],
)
def test_a_table_of_units_that_is_wrong(table, row, message):
    file = table(f"code,from_unit,to_unit,factor,offset,source\n{row}\n")
    with pytest.raises(InputError) as error:
        Codebook.load(units=file)
    assert str(error.value).startswith(f"{file}:") and message in str(error.value)


def glucose(book: Codebook, code: str = "2345-7", **quantity: object):
    record = {
        "resourceType": "Observation",
        "subject": {"reference": "Patient/p"},
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "issued": "2019-03-04T10:00:00Z",
        "valueQuantity": quantity,
    }
    (event,) = convert(decode(json.dumps(record).encode()), Site(Clock(), book=book)).events
    return event.numeric_value, event.text_value, event.unit


def test_units_are_converted_on_request_only():
    common = Codebook.load(units="common")
    assert glucose(Codebook(), value=5, code_="", unit="mmol/L") == (5, None, "mmol/L")
    assert glucose(common, value=5, unit="mmol/L") == (pytest.approx(90.078), None, "mg/dL")
    assert glucose(common, value=5, comparator="<", unit="mmol/L")[1:] == ("<", "mg/dL")
    assert glucose(common, value=90, unit="mg/dL") == (90, None, "mg/dL")
    assert glucose(common, "14749-6", value=5, unit="mmol/L") == (5, None, "mmol/L")
    assert glucose(common, "8310-5", value=98.6, unit="[degF]") == (
        *(pytest.approx(37), None, "Cel"),
    )
    assert glucose(common, "4548-4", value=53, unit="mmol/mol")[0] == pytest.approx(7.0, abs=0.01)
    with pytest.raises(Reject, match="32-bit"):
        glucose(common, value=3e38, unit="mmol/L")


def test_a_mapped_code_is_converted_as_what_it_is_mapped_to():
    book = Codebook(
        mappings={"LOINC/2339-0": "LOINC/2345-7"},
        conversions={("LOINC/2345-7", "mmol/L"): Conversion("mg/dL", 18, 0)},
    )
    assert glucose(book, "2339-0", value=5, unit="mmol/L") == (90, None, "mg/dL")


# IUPAC 2021: https://iupac.qmul.ac.uk/AtWt/
WEIGHTS = {
    **{"H": 1.008, "C": 12.011, "N": 14.007, "O": 15.999},
    **{"P": 30.974, "Ca": 40.078, "Mg": 24.305, "Fe": 55.845},
}
PREFIXES = {"umol/L": 1e-6, "mmol/L": 1e-3, "mg/dL": 1e-2, "ug/dL": 1e-5}  # mol/L and g/L


def test_the_factors_of_molar_masses_follow_from_their_formulas():
    with COMMON_UNITS.open() as file:
        rows = [row for row in csv.DictReader(file) if "g/mol" in row["source"]]
    assert len(rows) > 15
    for row in rows:
        formula, stated = re.search(r"M\((\w+)\) = ([\d.]+) g/mol", row["source"]).groups()
        mass = sum(WEIGHTS[e] * int(n or 1) for e, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula))
        assert float(stated) == pytest.approx(mass, abs=5e-4)
        ratio = PREFIXES[row["from_unit"]] / PREFIXES[row["to_unit"]]
        expected = ratio / mass if "mol" in row["to_unit"] else ratio * mass
        assert float(row["factor"]) == pytest.approx(expected, rel=1e-5), row


def test_the_common_units_end_in_one_unit_a_code():
    with COMMON_UNITS.open() as file:
        rows = list(csv.DictReader(file))
    assert len({(row["code"], row["to_unit"]) for row in rows}) == len({r["code"] for r in rows})
    assert all(row["from_unit"] != row["to_unit"] and row["source"] for row in rows)


def test_a_codebook_travels_to_other_processes_and_says_what_it_holds(table):
    book = Codebook.load(mappings=[table("from,to\nA_DBE15DF2/1,LOINC/1-1\n")], units="common")
    copy = pickle.loads(pickle.dumps(book))
    assert copy.fingerprint() == book.fingerprint() != Codebook().fingerprint()
    assert copy.concept(concept(("urn:a", "1"))).code == "LOINC/1-1"
    assert copy.conversion("LOINC/2345-7", "mmol/L") == book.conversion("LOINC/2345-7", "mmol/L")
    assert book.conversion("LOINC/2345-7", None) is None
    assert Codebook.load(units="common").fingerprint() != Codebook().fingerprint()


def test_concepts_are_remembered_but_not_without_bound():
    book = Codebook()
    one = book.concept(concept(("http://loinc.org", "1-1")))
    assert book.concept(concept(("http://loinc.org", "1-1"))) is one
    assert book._concept.cache_info().maxsize and book.system.cache_info().maxsize
