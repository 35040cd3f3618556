"""The page of a data folder: who is in it, what the tokens lost, and what each task can judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ehrmamba_hf.events.page import noun, warnings
from ehrmamba_hf.pages import Column, Verdict, by_power, environment, percent, thousands
from ehrmamba_hf.tasks import MIN_CASES, registered
from ehrmamba_hf.timelines import SPLITS

_NOTABLE: Final = 0.1
"""From this share on, unknown codes and events outside visits are said first."""
_WAYS: Final = {
    "inside_a_visit": "inside the visit whose time holds them",
    "before_the_encounter_it_references": "up to 24 h before the encounter that they reference",
    "before_the_next_stay": "up to 24 h before the next inpatient stay",
    "implicit_visit": "outside every visit: a visit of their calendar day",
}
_CUT: Final = {
    "without_birth_date": "patients without a birth date",
    "without_any_event": "patients without any event of the categories used",
    "events_after_death": "events after death, cut out",
    "encounters_after_death": "encounters after death, cut out",
    "diagnoses_after_death": "diagnoses after death, cut out",
    "stay_over_a_year": "stays of over a year, cut out",
    "encounter_ends_before_start": "encounters that end before they start, cut out",
    "encounter_end_missing": "encounters without an end, closed by what came after",
    "encounter_parts_joined": "parts of encounters, joined to the encounter that they are part of",
    "stays_merged": "inpatient stays, merged with the one that they overlap or closely follow",
    "encounters_absorbed": "other encounters, absorbed by an inpatient stay at the same time",
    "encounters_merged": "other encounters, merged with one at the same time",
}
_MADE: Final = {
    "encounters": "encounters that were read and not cut out at death",
    "encounters_in_stays": "encounters in inpatient stays",
    "stays": "inpatient stays made of them",
    "encounters_in_other_visits": "encounters in other visits",
    "other_visits": "other visits made of them",
}


@dataclass(frozen=True, slots=True)
class Cohort:
    """From the stays of a split (or of all) to the examples of a task."""

    name: str
    excluded: Mapping[str, int]  # by reason
    positives: int
    negatives: int

    @property
    def examples(self) -> int:
        return self.positives + self.negatives

    @property
    def stays(self) -> int:
        return self.examples + sum(self.excluded.values())

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Kind (a class of the style) and count, in the order of the bar."""
        out = self.stays - self.examples
        return [("used", self.positives), ("rest", self.negatives), ("unused", out)]


@dataclass(frozen=True, slots=True)
class TaskCohorts:
    """A task's way from stays to examples, by split and in all."""

    title: str
    splits: Mapping[str, Cohort]
    total: Cohort

    @property
    def reasons(self) -> list[str]:
        """The most frequent first."""
        return sorted(self.total.excluded, key=lambda reason: -self.total.excluded[reason])

    @property
    def judgeable(self) -> bool:
        test = self.splits.get("test")
        return test is not None and min(test.positives, test.negatives) >= MIN_CASES


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of how many, in each split."""

    name: str
    by_split: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Patients by how many of something they have, in each split."""

    title: str
    splits: Mapping[str, list[Column]]


def data_page(prepared: Mapping[str, Any], report: Mapping[str, Any] | None = None) -> str:
    """The self-contained page of a data folder, as HTML; it holds counts, never a patient.

    A section whose keys are missing is left out.

    Args:
        prepared: prepare.json, see `prepare`.
        report: report.json of the events folder that it was made of, for a summary.
    """
    splits = _splits(prepared)
    tasks = _tasks(prepared, splits)
    ways, cut = _records(prepared)
    return (
        environment()
        .get_template("corpus/report.html.j2")
        .render(
            prepared=prepared,
            report=report,
            noun=noun(report or {}),
            verdict=_verdict(prepared, report, tasks, ways),
            splits=splits,
            sizes=_sizes(prepared),
            tasks=tasks,
            min_cases=MIN_CASES,
            histograms=_histograms(prepared, splits),
            codes=_codes(prepared, splits),
            units=_units(prepared, splits),
            ways=ways,
            cut=cut,
            made=_made(prepared),
            given=prepared.get("tokenizer") == "given",
            facts=_facts(prepared),
        )
    )


def _verdict(
    prepared: Mapping[str, Any],
    report: Mapping[str, Any] | None,
    tasks: list[TaskCohorts],
    ways: list[tuple[str, int]],
) -> Verdict:
    points = [f"From reading: {warning}" for warning in warnings(report or {})]
    points += _lost(prepared, dict(ways))
    unjudged = [task.title for task in tasks if not task.judgeable]
    if unjudged:
        points.append(
            f"Not judgeable, with under {MIN_CASES} positives or negatives in the test split: "
            f"{'; '.join(unjudged)}."
        )
    wrong = [
        f"{task.title} ({split})"
        for task in tasks
        for split, cohort in task.splits.items()
        if "stays" in prepared and cohort.stays != prepared["stays"].get(split, 0)
    ]
    if wrong:
        sentence = f"Do not trust these data: stays do not add up in {'; '.join(wrong)}."
        return Verdict("bad", sentence, points)
    judged = f"{len(tasks) - len(unjudged)} of {len(tasks)} tasks can be judged on the test split"
    if points:
        return Verdict("look", f"{judged}. Before you train on the data, read this:", points)
    return Verdict("good", f"{judged}, every stay is accounted for, and there are no warnings.", [])


def _lost(prepared: Mapping[str, Any], ways: Mapping[str, int]) -> list[str]:
    """What the tokens do not show, where it is much."""
    points = []
    systems = prepared.get("unknown_by_system", {}).get("test", {}).values()
    unknown, events = (sum(system[key] for system in systems) for key in ("unknown", "events"))
    if unknown > _NOTABLE * events:
        points.append(
            f"{percent(unknown, events)} of the test split's events have a code that is not in "
            "the vocabulary."
        )
    outside, placed = ways.get(_WAYS["implicit_visit"], 0), sum(ways.values())
    if outside > _NOTABLE * placed:
        points.append(f"{percent(outside, placed)} of the events lie outside every visit.")
    return points


def _splits(prepared: Mapping[str, Any]) -> list[str]:
    """The splits that have a patient, in the order of their use."""
    patients = prepared.get("patients", {})
    return [
        split for split in (*SPLITS, *sorted(set(patients) - set(SPLITS))) if patients.get(split)
    ]


def _sizes(prepared: Mapping[str, Any]) -> dict[str, Mapping[str, int]]:
    names = {"Patients": "patients", "Inpatient stays": "stays", "Tokens written": "tokens"}
    return {name: prepared[key] for name, key in names.items() if key in prepared}


def _tasks(prepared: Mapping[str, Any], splits: list[str]) -> list[TaskCohorts]:
    titles = {task.name: task.title for task in registered()}
    result = []
    for name, by_split in prepared.get("tasks", {}).items():
        cohorts = {split: _cohort(split, by_split[split]) for split in splits if split in by_split}
        excluded: dict[str, int] = {}
        for cohort in cohorts.values():
            for reason, count in cohort.excluded.items():
                excluded[reason] = excluded.get(reason, 0) + count
        positives = sum(cohort.positives for cohort in cohorts.values())
        negatives = sum(cohort.negatives for cohort in cohorts.values())
        total = Cohort("All", excluded, positives, negatives)
        result.append(TaskCohorts(titles.get(name, name), cohorts, total))
    return result


def _cohort(split: str, counts: Mapping[str, Any]) -> Cohort:
    examples = counts["examples"]
    return Cohort(
        split, counts["excluded"], examples.get("positive", 0), examples.get("negative", 0)
    )


def _histograms(prepared: Mapping[str, Any], splits: list[str]) -> list[Histogram]:
    result = []
    for what, counts in prepared.get("distributions", {}).items():
        bins = by_power({split: counts[split] for split in splits if split in counts})
        if any(bins.values()):
            result.append(Histogram(f"{what.capitalize()} a patient", bins))
    return result


def _codes(prepared: Mapping[str, Any], splits: list[str]) -> list[Rate]:
    """Events whose code is not in the vocabulary: all first, then the systems by use."""
    counts = prepared.get("unknown_by_system", {})
    by_system: dict[str, dict[str, tuple[int, int]]] = {}
    total = dict.fromkeys(splits, (0, 0))
    for split in splits:
        for system, found in counts.get(split, {}).items():
            unknown, events = found["unknown"], found["events"]
            by_system.setdefault(system, {})[split] = unknown, events
            total[split] = total[split][0] + unknown, total[split][1] + events
    if not by_system:
        return []
    rates = [Rate(system, by_split) for system, by_split in by_system.items()]
    rates.sort(key=lambda rate: -sum(events for _, events in rate.by_split.values()))
    return [Rate("All codes", total), *rates]


def _units(prepared: Mapping[str, Any], splits: list[str]) -> Rate | None:
    counts = prepared.get("unfitted_units", {})
    by_split = {s: (counts[s]["unfitted"], counts[s]["numbers"]) for s in splits if s in counts}
    return Rate("Numbers", by_split) if by_split else None


def _records(
    prepared: Mapping[str, Any],
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """How events found their visits, and what was cut out, mended or merged, in words."""
    counts = prepared.get("records", {})
    ways = [(words, counts[key]) for key, words in _WAYS.items() if key in counts]
    cut = [
        (_CUT.get(key, key.replace("_", " ")), count)
        for key, count in counts.items()
        if key not in _WAYS
    ]
    return ways, sorted(cut, key=lambda pair: -pair[1])


def _made(prepared: Mapping[str, Any]) -> list[tuple[str, int]]:
    """What visits were made of, in words."""
    counts = prepared.get("visits", {})
    names = [*_MADE, *(key for key in counts if key not in _MADE)]
    words = {key: _MADE.get(key, key.replace("_", " ")) for key in names}
    return [(words[key], counts[key]) for key in names if key in counts]


def _facts(prepared: Mapping[str, Any]) -> dict[str, str]:
    """Vocabulary and settings, in words."""
    counted = {
        "Tokens in the vocabulary": "vocabulary",
        "Codes with bins for their values": "binned_codes",
        "Longest sequence, in tokens": "context_length",
        "Patients that a token needs": "min_patients",
    }
    facts = {name: thousands(prepared[key]) for name, key in counted.items() if key in prepared}
    if "follow_up_end" in prepared:
        end = prepared["follow_up_end"]
        facts["Follow-up ends"] = "never: complete" if end == "complete" else end[:10]
    facts |= _chosen(prepared.get("settings", {}))
    if "fingerprint" in prepared:
        facts["Fingerprint of input and settings"] = prepared["fingerprint"]
    return facts


def _chosen(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings that a reader of results asks for."""
    facts = {}
    if "categories" in settings:
        names = [category.replace("_", " ") for category in settings["categories"]]
        facts["Events that become tokens"] = ", ".join(names)
    if "splits" in settings:
        rules = settings["splits"]
        facts["Splits by patient"] = (
            f"{100 * rules['pretrain']:g} % pretrain, {100 * rules['finetune']:g} % finetune, "
            f"{100 * rules['validation']:g} % of each for validation, the rest test; "
            f"seed {rules['seed']}"
        )
    if "train_stays" in settings:
        facts["Stays of a patient that finetuning draws"] = f"at most {settings['train_stays']}"
    if "new_onset" in settings:
        asked = "only without an earlier mention" if settings["new_onset"] else "in every stay"
        facts["Conditions are asked"] = asked
    return facts
