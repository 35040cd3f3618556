"""The synthetic course: its rules of time, and its stated probabilities against its own draws."""

from collections import defaultdict

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehrmamba_hf.simulation.course import CATALOG, DAY, HOUR, MONTH, Course

TARGETS = {  # paper, Table 3, test column
    "mortality": 0.10,
    "length_of_stay": 0.30,
    "readmission": 0.38,
    "condition_0": 0.43,
    "condition_1": 0.33,
    "condition_2": 0.24,
}


@pytest.fixture(scope="module")
def courses() -> list[Course]:
    return [Course(np.random.default_rng((3, i))) for i in range(3000)]


def stays_of(course: Course):
    return [visit for visit in course.visits if visit.inpatient]


def outcomes(course: Course) -> dict[tuple[str, int], bool]:
    """The labels by the prospective rules, from times and codes alone."""
    labels = {}
    stays = stays_of(course)
    groups = {"condition_0": "I10", "condition_1": "E87.1", "condition_2": "E78.5"}
    for stay, after in zip(stays, [*stays[1:], None], strict=True):
        if stay.end > stay.start + DAY:
            coded = {CATALOG[e.row]["code"] for e in stay.events if e.kind == "diagnosis"}
            labels["length_of_stay", stay.start + DAY] = stay.end - stay.start > 7 * DAY
            for task, code in groups.items():
                labels[task, stay.start + DAY] = code in coded
        if stay.end != course.died:
            soon = course.died is not None and course.died - stay.end <= MONTH
            labels["mortality", stay.end] = soon
            back = after is not None and after.start - stay.end <= MONTH
            labels["readmission", stay.end] = back
    return labels


def test_risks_stand_at_exactly_the_prospective_index_times(courses):
    for course in courses:
        assert {(task, time) for task, time, _ in course.risks} == set(outcomes(course))


def test_risks_are_calibrated_near_the_papers_rates_and_neither_trivial_nor_hopeless(courses):
    rows = defaultdict(list)
    for course in courses:
        labels = outcomes(course)
        for task, time, risk in course.risks:
            rows[task].append((labels[task, time], risk))
    for task, target in TARGETS.items():
        label, risk = np.array(rows[task], float).T
        assert risk.mean() == pytest.approx(target, abs=0.03), task
        assert 0.75 < roc_auc_score(label, risk) < 0.95, task
        for part in np.array_split(np.argsort(risk, kind="stable"), 5):
            error = np.sqrt((risk[part] * (1 - risk[part])).sum()) / len(part)
            assert abs(label[part].mean() - risk[part].mean()) < 4 * error, task


def test_visits_keep_their_distances(courses):
    for course in courses:
        for before, after in zip(course.visits, course.visits[1:], strict=False):
            apart = 12 * HOUR if before.inpatient and after.inpatient else DAY + 6 * HOUR
            assert after.start - before.end > apart
        for visit in course.visits:
            assert all(visit.start <= event.time <= visit.end for event in visit.events)
            assert visit.inpatient or visit.end - visit.start <= 2 * HOUR


def test_nothing_lies_after_death_and_nobody_dies_at_home_on_the_day_of_discharge(courses):
    for course in courses:
        last = course.visits[-1]
        if course.died is not None:
            assert last.end <= course.died
            assert last.end == course.died or course.died // DAY > last.end // DAY


def test_a_death_within_30_days_belongs_to_one_discharge_only(courses):
    for course in courses:
        died = [s for s in stays_of(course) if 0 <= (course.died or 0) - s.end <= MONTH]
        assert len(died) <= 1


def test_the_exposure_is_coded_once_in_the_first_visit_only(courses):
    for course in courses:
        codes = [[CATALOG[e.row]["code"] for e in visit.events] for visit in course.visits]
        assert ("3639" in codes[0]) == course.exposed  # doxorubicin
        assert not any("3639" in later for later in codes[1:])


def test_active_hypertension_and_lipid_disorder_always_show_by_a_drug_before_24_hours(courses):
    tasks = {"hypertension": "condition_0", "lipids": "condition_2"}
    drugs = {
        latent: {
            row
            for row, line in enumerate(CATALOG)
            if (line["when"], line["shows"]) == ("visits", latent)
        }
        for latent in tasks
    }
    for course in courses:
        risks = {(task, time): risk for task, time, risk in course.risks}
        for stay in stays_of(course):
            for latent, task in tasks.items():
                risk = risks.get((task, stay.start + DAY))
                early = {
                    e.row for e in stay.events if e.kind == "drug" and e.time < stay.start + DAY
                }
                assert risk is None or (risk > 0.5) == bool(early & drugs[latent])


def test_the_first_24_hours_tell_nothing_of_the_length_beyond_the_latent_state(courses):
    leaving = {row for row, line in enumerate(CATALOG) if line["when"] == "leaving"}
    for course in courses:
        for stay in stays_of(course):
            if stay.end > stay.start + DAY:
                early = [e for e in stay.events if e.time <= stay.start + DAY]
                assert not any(e.row in leaving for e in early)
                assert len({e.time for e in early if e.kind == "lab"}) == 2  # 45 min and 20 h


def test_the_same_generator_gives_the_same_patient():
    first, again = (Course(np.random.default_rng((5, 8))) for _ in range(2))
    assert first.visits == again.visits and first.risks == again.risks


def test_patients_are_of_the_intended_size(courses):
    main = ("drug", "lab", "procedure")
    events = [sum(e.kind in main for v in c.visits for e in v.events) for c in courses]
    assert 200 < np.mean(events) < 280
    assert 2.7 < np.mean([len(stays_of(course)) for course in courses]) < 3.8
    assert 60 <= len(CATALOG) <= 100
