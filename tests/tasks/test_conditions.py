"""Coded conditions: by encounter, by time, by code."""

import pytest

from ehrmamba_hf.errors import InputError
from ehrmamba_hf.tasks import registered, with_options
from ehrmamba_hf.tasks.conditions import LIPID_DISORDERS, extend_group, read_more_codes

STAY = "2020-01-01T08:00 2020-01-10T12:00"
AT = "2020-01-02T08:00"
HIGH = "ICD10CM/I10"


@pytest.mark.parametrize(
    ("coding", "groups"),
    [
        (f"{system}/{code}", groups)
        for system, groups, codes in (
            ("ICD10CM", "0", "I10 i10 I11.0 I110 I12.9 I13 I15.1 I16.1"),
            ("ICD10", "0", "I10"),
            ("ICD10GM", "0", "I10.90"),
            ("ICD9CM", "0", "401 401.9 4019 402.01 403 404 40599"),
            ("SNOMED", "0", "38341003 59621000"),
            ("ICD10CM", "1", "E86 E86.0 E860 E87.1 E876"),
            ("ICD9CM", "1", "276 276.1 2761"),
            ("ICD10CM", "2", "E78 E78.5 E785"),
            ("ICD9CM", "2", "272 272.4 2724"),
            ("SNOMED", "2", "55822004 302870006"),
            ("ICD10CM", "", "I09 I1 I17 I20 E85.9 E88 E77 E79"),
            ("ICD9CM", "", "400 406 40 275.2 277 271 273 E860"),
            ("ICD9CM", "", "I10"),  # a code of the other edition
            ("ICD10CM", "", "401.9"),
            ("ICD10PCS", "", "I10"),  # procedures
            ("ICD9PCS", "", "401"),
            ("SNOMED", "", "383410030 3834100"),  # whole codes only
            ("LOCAL", "", "I10"),
            ("TEXT", "", "hypertension"),
        )
        for code in codes.split()
    ],
)
def test_codes(ask, coding, groups):
    for group in "012":
        found = ask(f"condition_{group}", STAY, codes=[("2020-01-05T08:00", "s0", coding)])
        assert found == [(AT, group in groups)]


def test_any_coding_of_a_diagnosis_counts(ask):
    codes = [("2020-01-05T08:00", "s0", "LOCAL/7", "SNOMED/1", "ICD10CM/I10")]
    assert ask("condition_0", STAY, codes=codes) == [(AT, True)]


def test_a_diagnosis_belongs_to_the_stay_of_its_encounter_whatever_its_time(ask):
    part = ("2020-01-03T08:00 2020-01-04T08:00", {"kind": "ACUTE", "part_of": "s0"})
    absorbed = ("2020-01-01T02:00 2020-01-01T09:00", {"kind": "EMER"})
    transfer = "2020-01-10T13:00 2020-01-15T08:00"
    stays = (STAY, part, absorbed, transfer)
    for name in ("s0", "s1", "s2", "s3"):
        for time in ("2019-06-01T08:00", "2020-01-05T08:00", "2020-03-01T08:00"):
            assert ask("condition_0", *stays, codes=[(time, name, HIGH)]) == [(AT, True)]


def test_a_diagnosis_of_another_encounter_is_not_coded_in_the_stay(ask):
    clinic = ("2020-01-20T08:00 2020-01-20T09:00", {"kind": "AMB"})
    codes = [("2020-01-05T08:00", "s1", HIGH)]
    assert ask("condition_0", STAY, clinic, codes=codes) == [(AT, False)]


@pytest.mark.parametrize(
    ("time", "label"),
    [
        ("2020-01-01T07:59", False),
        ("2020-01-01T08:00", True),
        ("2020-01-05T08:00", True),
        ("2020-01-10T12:00", True),
        ("2020-01-10T12:01", False),
    ],
)
@pytest.mark.parametrize("encounter", [None, "not in the data"])
def test_a_diagnosis_without_a_known_encounter_belongs_by_its_time(ask, time, label, encounter):
    assert ask("condition_0", STAY, codes=[(time, encounter, HIGH)]) == [(AT, label)]


def test_only_stays_of_over_24_hours_are_asked(ask):
    codes = [("2020-01-01T09:00", "s0", HIGH)]
    short = "2020-01-01T08:00 2020-01-02T08:00"
    assert ask("condition_0", short, codes=codes) == ["the stay ended within 24 hours"]


def test_new_onset_leaves_out_stays_with_an_earlier_mention(ask):
    later = "2020-03-01T08:00 2020-03-10T12:00"
    clinic = ("2019-05-01T08:00 2019-05-01T09:00", {"kind": "AMB"})
    (task,) = with_options(registered(["condition_0"]), new_onset=True)
    in_first = [("2020-01-05T08:00", "s0", HIGH)]
    assert ask(task, STAY, later, codes=in_first) == [(AT, True), "mentioned before"]
    assert ask("condition_0", STAY, later, codes=in_first) == [
        (AT, True),
        ("2020-03-02T08:00", False),
    ]
    in_both = [*in_first, ("2020-03-05T08:00", "s1", HIGH)]
    assert ask(task, STAY, later, codes=in_both) == [(AT, True), "mentioned before"]
    in_clinic = [("2019-05-01T08:30", "s1", HIGH)]
    assert ask(task, STAY, clinic, codes=in_clinic) == ["mentioned before"]
    other = [("2019-05-01T08:30", "s1", "ICD10CM/E78.5")]
    assert ask(task, STAY, clinic, codes=other) == [(AT, False)]
    in_later = [("2020-03-05T08:00", "s1", HIGH)]
    assert ask(task, STAY, later, codes=in_later) == [(AT, False), ("2020-03-02T08:00", True)]


def test_more_codes_come_from_a_file(ask, tmp_path):
    """Dotted codes and other names of an edition in the file once matched nothing."""
    file = tmp_path / "more.yaml"
    file.write_text("condition_0: {SNOMED: [1201005], ICD10: ['H35.03'], ICD9CM: ['362.11']}\n")
    (task, same) = with_options(
        registered(["condition_0", "mortality"]), more_codes=read_more_codes(file)
    )
    assert same is registered(["mortality"])[0]
    for coding in ("SNOMED/1201005", "ICD10CM/H35.031", "ICD10GM/H3503", "ICD9CM/36211", HIGH):
        codes = [("2020-01-05T08:00", "s0", coding)]
        assert ask(task, STAY, codes=codes) == [(AT, True)]
    with pytest.raises(InputError, match="condition_9"):
        with_options(registered(), more_codes={"condition_9": {}})
    file.write_text("condition_1: {ICD9CM: [042, 272.40]}\n")
    assert read_more_codes(file) == {"condition_1": {"ICD9CM": ["042", "272.40"]}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- I10", "more.yaml: expected task -> system -> list of codes, found ..I10"),
        ("", "more.yaml: expected task -> system -> list of codes"),
        ("condition_2: [E78]", "more.yaml: condition_2: expected system -> list of codes"),
        ("condition_2: {ICD10CM: E78}", "condition_2: ICD10CM: expected a list of codes, .*'E78'"),
        ("condition_2: {ICD10CM: []}", r"condition_2: ICD10CM: expected a list .* found \[\]"),
        ("condition_2: {ICD10CM: [E78, '']}", "condition_2: ICD10CM: expected a list of codes"),
        ("condition_2: {ICD10CM: {E78: 1}}", "condition_2: ICD10CM: expected a list of codes"),
        ("condition_2: {", "more.yaml: expected a YAML file of more codes, found: while parsing"),
    ],
)
def test_a_file_of_more_codes_that_is_none(tmp_path, text, sentence):
    """A text in place of a list was once taken letter by letter: 7 was a lipid disorder."""
    file = tmp_path / "more.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_more_codes(file)


def test_no_file_of_more_codes_and_no_list_of_codes(tmp_path):
    with pytest.raises(InputError, match=r"none.yaml: expected a YAML file .* No such file"):
        read_more_codes(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="ICD10CM: expected a list of codes, found 'E78'"):
        extend_group(LIPID_DISORDERS, {"ICD10CM": "E78"})
