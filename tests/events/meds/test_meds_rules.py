"""The meaning of codes: the packaged rules on codes of published datasets, and a site's own."""

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.events.meds.rules import MedsRules, Rule, read_rules

RULES = MedsRules()


@pytest.mark.parametrize(
    ("code", "category", "name", "unit"),
    [
        ("LAB//RESULT//50912//mg/dL", "lab", "MIMIC_LAB/50912", "mg/dL"),
        ("LAB//50912//UNK", "lab", "MIMIC_LAB/50912", None),
        ("LAB//SPECIMEN_COLLECTED//50912", "observation", None, None),
        ("LAB//220045//bpm", "vital_sign", "MIMIC_CHART/220045", "bpm"),
        ("LAB//224639//kg", "observation", "MIMIC_CHART/224639", "kg"),
        ("SUBJECT_FLUID_OUTPUT//226559//mL", "output", "MIMIC_OUTPUT/226559", "mL"),
        ("DIAGNOSIS//ICD//10//E119", "condition", "ICD10CM/E119", None),
        ("PROCEDURE//ICD//10//0DTJ4ZZ", "procedure", "ICD10PCS/0DTJ4ZZ", None),
        ("PROCEDURE//START//225401", "procedure", "MIMIC_ICU/225401", None),
        ("PROCEDURE//END//225401", "observation", None, None),
        ("MEDICATION//Heparin//Administered//UNK", "administration", None, None),
        ("MEDICATION//STOP//Heparin", "observation", None, None),
        ("TRANSFER_TO//ED//Emergency Department", "observation", None, None),
        ("DRG//HCFA//003//ECMO", "observation", None, None),
    ],
)
def test_codes_of_mimic_iv(code, category, name, unit):
    found = RULES.meaning(code, mimic=True)
    assert (found.role, found.category, found.unit, found.known) == ("event", category, unit, True)
    assert name is None or found.name == name
    assert found.codings[0] == found.name and code in found.codings


@pytest.mark.parametrize(
    ("code", "category", "name"),
    [
        ("LOINC/2160-0", "lab", "LOINC/2160-0"),
        ("LOINC//2160-0", "lab", "LOINC/2160-0"),
        ("LOINC/8867-4", "vital_sign", "LOINC/8867-4"),
        ("RxNorm/197361", "medication", "RXNORM/197361"),
        ("NDC/00002821501", "medication", "NDC/00002821501"),
        ("ICD10CM/e11.9", "condition", "ICD10CM/E119"),
        ("ICD9Proc/38.93", "procedure", "ICD9PCS/3893"),
        ("CPT4/99213", "procedure", "CPT/99213"),
        ("CVX/140", "immunization", "CVX/140"),
        ("SNOMED/38341003", "observation", "SNOMED/38341003"),
        ("drug_exposure_start//RxNorm//1127433", "medication", None),  # maybe OMOP's own number
        ("drug_era_start//RxNorm//1127433", "observation", None),
    ],
)
def test_codes_of_known_systems(code, category, name):
    found = RULES.meaning(code)
    assert (found.category, found.name, found.known) == (category, name or code, True)


@pytest.mark.parametrize(
    ("code", "role", "value"),
    [
        ("GENDER//M", "sex", "male"),
        ("Gender/8532", "sex", "female"),
        ("RACE//WHITE - OTHER EUROPEAN", "race", "WHITE - OTHER EUROPEAN"),
        ("HOSPITAL_ADMISSION//EU OBSERVATION//UNK", "admission", "OBSENC"),
        ("HOSPITAL_ADMISSION//URGENT//UNK", "admission", "IMP"),
        ("HOSPITAL_DISCHARGE//UNK", "discharge", None),
        ("visit//Visit//9203", "admission", "EMER"),
        ("Visit/OMOP4822459", "admission", ""),
        ("ICU_DISCHARGE//MICU", "icu_discharge", None),
        ("ED_OUT", "ed_departure", None),
    ],
)
def test_codes_of_subjects_and_encounters(code, role, value):
    found = RULES.meaning(code)
    assert (found.role, found.value or "") == (role, value or "")


def test_what_no_rule_knows():
    found = RULES.meaning("Blood Pressure")
    assert (found.category, found.name, found.known) == ("observation", "Blood Pressure", False)
    assert RULES.meaning("Blood Pressure", table="measurement").category == "lab"


def test_the_first_rule_decides():
    first, second = Rule(pattern="A//.*", category="lab"), Rule(pattern=".*", category="procedure")
    rules = MedsRules(rules=(first, second))
    assert rules.meaning("A//1").category == "lab"
    assert rules.meaning("B//1").category == "procedure"


def test_rules_of_a_site_come_before_the_packaged_ones(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text(
        """
rules:
  - {pattern: 'KREA (?P<unit>.*)', category: lab, code: 'LOINC/2160-0'}
  - {pattern: 'LOINC/8867-4', role: not_used, value: no pulse}
systems: {LAB_X: {name: LAB_X, category: lab}}
tables: {pulse: vital_sign}
"""
    )
    rules = read_rules(file)
    found = rules.meaning("KREA mg/dL")
    assert (found.name, found.category, found.unit) == ("LOINC/2160-0", "lab", "mg/dL")
    assert rules.meaning("LOINC/8867-4").role == "not_used"
    assert rules.meaning("lab_x/7").name == "LAB_X/7"
    assert rules.meaning("P", table="pulse").category == "vital_sign"
    assert rules.meaning("GENDER//F").value == "female"
    assert rules.hourless == RULES.hourless


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [{pattern: '('}]", "expected a regular expression"),
        ("rules: [{pattern: 'a', category: lunch}]", "found .'lunch'."),
        ("rules: [{pattern: 'a', rule: event}]", "rule"),
        ("hourless: [noon]", "expected times of day such as 23:59:59, found noon"),
        ("other: 1", "other"),
        ("[1]", "expected a YAML file of MEDS rules"),
        (b"mimic: \xff", "expected a YAML file of MEDS rules"),
        ("rules: [{pattern: '(?P<x>.)', code: '{x'}]", r"groups \['x'\], found '\{x'"),
        ("rules: [{pattern: 'a', also: ['{0}']}]", r"rule 'a': expected .* found '\{0\}'"),
        ("rules: [{pattern: 'a', code: '{y}'}]", r"named groups \[\], found '\{y\}'"),
        ("rules: [{pattern: '(?P<x>.)', code: '{x:d}'}]", "found '{x:d}'"),
    ],
)
def test_rules_that_cannot_be_read(tmp_path, text, message):
    file = tmp_path / "rules.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=f"rules.yaml: .*{message}"):
        read_rules(file)
