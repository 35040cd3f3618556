"""One synthetic patient's course: latent state -> visits, events and the true risks of six tasks.

Everything that matters is a row of the latent vector z (`LATENTS`): chronic diseases with an onset
each, an early anthracycline exposure, and for each stay an acute severity (0 to 3, as three steps),
a fluid disorder and, at discharge, an unstable state. `LOGITS` turns z into probabilities. z shows
itself by catalog.csv: a chronic disease always through one drug, requested at the start of each
visit; an acute state within hours through laboratory values, drugs and procedures; the exposure
through a single drug in the patient's first visit, and never again.

What keeps the risks exact, as probabilities given z:

- at an alive discharge one of three is drawn: death at home within 30 days, another stay that
  starts within 30 days, or neither (then nobody dies and no stay starts within 31 days);
- nobody dies in hospital during a stay that began within 30 days of the discharge before it, and
  a death at home falls later than 30 days after any earlier discharge, so that each death within
  30 days belongs to one discharge only;
- a course is drawn whole and written whole: it ends by death or by itself, never by the calendar,
  so that everybody is followed up to the latest time in the data.
"""

import csv
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
HOUR, DAY, MONTH, YEAR = 60, 24 * 60, 30 * 24 * 60, 365 * 24 * 60  # times are in whole minutes
FIRST_VISITS = 38 * YEAR  # after 1970; they fall in the ten years from then on

CHRONIC = ("hypertension", "lipids", "diabetes", "failure", "kidney", "cancer")
PREVALENCE = np.array([0.40, 0.18, 0.25, 0.20, 0.16, 0.14])  # at the first visit
ONSET = 12 * YEAR  # mean wait for a disease that is absent then
# base is 1, age in decades from 65, the three steps of severity are cumulative
LATENTS = ("base", "age", "exposed", *CHRONIC, "mild", "moderate", "severe", "fluid", "unstable")
AT = {name: i for i, name in enumerate(LATENTS)}
DISEASES, SEVERITY = slice(AT["hypertension"], AT["mild"]), slice(AT["mild"], AT["fluid"])
SEVERITY_CUTS = np.array([0.2, 1.2, 2.2])
CONDITIONS = {"condition_0": "hypertension", "condition_1": "fluid", "condition_2": "lipids"}
SHOWN, STRAY, BACKGROUND = 0.88, 0.05, 0.3  # a code's chance: its latent on, off, or none at all


def weights(**terms: float) -> Array:
    """A vector over `LATENTS`.

    >>> float(weights(base=2, fluid=1).sum())
    3.0
    """
    vector = np.zeros(len(LATENTS))
    for name, value in terms.items():
        vector[AT[name]] = value
    return vector


LOGITS = {
    "fluid": weights(base=-2.0, mild=0.8, moderate=0.8, kidney=1.0, failure=0.6),
    "unstable": weights(base=-1.5, moderate=0.8, severe=0.8, cancer=0.6, failure=0.6),
    "hospital_death": weights(base=-5.5, moderate=1.5, severe=1.8, cancer=0.8),
    "length_of_stay": weights(base=-2.7, mild=0.9, moderate=1.6, severe=1.6, fluid=1.0),
    "mortality": weights(base=-4.1, age=0.2, exposed=1.8, cancer=1.8, severe=1.5, unstable=3.5),
    "readmission": weights(base=-1.9, exposed=1.0, failure=0.8, kidney=0.6, unstable=3.3),
}


def probability(name: str, z: Array) -> float:
    """The chance of an event of `LOGITS`, or of a condition's code, in the latent state z."""
    if name in CONDITIONS:
        return SHOWN if z[AT[CONDITIONS[name]]] else STRAY
    return float(1 / (1 + np.exp(-(LOGITS[name] @ z))))


def _shift(shows: str) -> Array:
    return weights(**{name: float(sd) for name, sd in (term.split("=") for term in shows.split())})


def _rows(when: str, shows: str | None = None) -> NDArray[np.int64]:
    found = (when in line["when"].split() and shows in (None, line["shows"]) for line in CATALOG)
    return np.flatnonzero(list(found))


# Each line has a kind, code and name. What has a unit is measured: at admission, through the stay
# and before discharge (stay), or outpatient, and shows latents by shifts of its healthy mean, in
# sd. Codes come by visits (while the latent is on, one drug of several, the patient's own), once
# (in the first visit), or by chance in care, leaving or coding, likelier while the latent is on.
_TEXT = files(__package__).joinpath("catalog.csv").read_text(encoding="utf-8")
CATALOG: list[dict[str, str]] = list(csv.DictReader(_TEXT.splitlines()))
MEASURED = [line for line in CATALOG if line["unit"]]  # the first lines
MEAN, SD = np.array([(float(line["mean"]), float(line["sd"])) for line in MEASURED]).T
SHIFT = np.stack([_shift(line["shows"]) for line in MEASURED])
DIGITS = [max(0, 1 - int(np.floor(np.log10(sd)))) for sd in SD]  # two significant ones of the sd
GROUPS = {
    when: _rows(when)
    for when in ("admission", "stay", "outpatient", "once", "care", "leaving", "coding")
}
OWN_DRUGS = [_rows("visits", name) for name in CHRONIC]
LATENT = np.array([AT.get(line["shows"], AT["base"]) for line in CATALOG])


class Event(NamedTuple):
    """A row of `CATALOG` at a time; its kind, but "dose" for a drug given, not requested."""

    kind: str
    row: int
    time: int
    value: float = 0.0


class Visit(NamedTuple):
    """A stay in hospital or an outpatient visit, in minutes since 1970 of wall clock."""

    start: int
    end: int
    inpatient: bool
    events: list[Event]


class Course:
    """One patient from the first visit to the end; the same generator gives the same patient.

    Attributes: `born` and `died` (minutes since 1970; `died` None while alive), `female`, `visits`,
    `risks` as (task, index time, true probability).
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        first = FIRST_VISITS + self._minutes(0, 10 * YEAR)
        self.born = first - self._minutes(35 * YEAR, 90 * YEAR)
        self.female, self.exposed = self._chance(0.5), self._chance(0.3)
        late = rng.exponential(ONSET, len(CHRONIC))
        self.onsets = first + np.where(rng.random(len(CHRONIC)) < PREVALENCE, -1, late)
        self.drugs = [int(rng.choice(options)) for options in OWN_DRUGS]
        self.died: int | None = None
        self.visits: list[Visit] = []
        self.risks: list[tuple[str, int, float]] = []
        exposure = GROUPS["once"].tolist() if self.exposed else []
        self._outpatient(first, [Event("drug", row, first + 30) for row in exposure])
        start: int | None = first + self._minutes(20 * DAY, 200 * DAY)
        safe = 0
        while start is not None:
            start, safe = self._stay(start, safe)

    def _chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def _minutes(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def _state(self, time: int) -> Array:
        z = weights(base=1, age=(time - self.born) / (10 * YEAR) - 6.5, exposed=self.exposed)
        z[DISEASES] = self.onsets <= time
        return z

    def _outpatient(self, start: int, events: list[Event]) -> None:
        z = self._state(start)
        events = events + self._own_drugs(z, start + 20) + self._panel("outpatient", z, start + 10)
        self.visits.append(Visit(start, start + self._minutes(40, 120), False, events))

    def _stay(self, start: int, safe: int) -> tuple[int | None, int]:
        """Draw the stay; return the next one's start and until when no death at home may fall."""
        z = self._state(start)
        burden = 0.5 * (z[AT["failure"]] + z[AT["kidney"]] + z[AT["cancer"]])
        z[SEVERITY] = burden + self.rng.logistic() > SEVERITY_CUTS
        z[AT["fluid"]] = self._chance(probability("fluid", z))
        end = start + self._length(z)
        if end > start + DAY:
            tasks = ("length_of_stay", *CONDITIONS)
            self.risks += [(task, start + DAY, probability(task, z)) for task in tasks]
        dies = not safe and self._chance(probability("hospital_death", z))
        events = self._admission(z, start, end)
        z[AT["unstable"]] = self._chance(probability("unstable", z))
        events += self._discharge(z, end)
        self.visits.append(Visit(start, end, True, events))
        if dies:
            self.died = end
            return None, 0
        return self._leave(z, end, safe)

    def _length(self, z: Array) -> int:
        if self._chance(0.06):
            return self._minutes(10 * HOUR, DAY + 1)
        if self._chance(probability("length_of_stay", z)):
            return 7 * DAY + 1 + min(int(self.rng.exponential(3 * DAY)), 21 * DAY)
        # from 30 h on, so that nothing of the discharge shows in the first 24 h
        return self._minutes(30 * HOUR, 7 * DAY + 1)

    def _admission(self, z: Array, start: int, end: int) -> list[Event]:
        events = self._own_drugs(z, start + 20) + self._panel("admission", z, start + 45)
        events += self._codes("care", z, start + HOUR, start + 5 * HOUR)
        doses = [Event("dose", e.row, e.time + HOUR) for e in events if e.kind == "drug"]
        for time in range(start + 20 * HOUR, end - 4 * HOUR, 2 * DAY):
            events += self._panel("stay", z, time)
        return events + doses

    def _discharge(self, z: Array, end: int) -> list[Event]:
        """The last hours: severity has passed, into a state like severity 2 or like health."""
        last = z.copy()
        last[SEVERITY] = z[AT["unstable"]] * np.array([1, 1, 0])
        events = self._panel("stay", last, end - 4 * HOUR)
        events += self._codes("leaving", z, end - 3 * HOUR, end - HOUR)
        return events + self._codes("coding", z, end - 1, end)

    def _leave(self, z: Array, end: int, safe: int) -> tuple[int | None, int]:
        death, again = (float(np.exp(LOGITS[task] @ z)) for task in ("mortality", "readmission"))
        total = 1 + death + again
        self.risks += [("mortality", end, death / total), ("readmission", end, again / total)]
        outcome = self.rng.random() * total
        if outcome < death:
            self.died = self._minutes(max(end + DAY, safe + 1), end + MONTH)
            return None, 0
        if outcome < death + again:
            return end + self._minutes(DAY, MONTH), end + MONTH
        if self._chance(0.65):
            start = end + MONTH + self._minutes(20 * DAY, YEAR)
            self._outpatient(self._minutes(end + 10 * DAY, start - 5 * DAY), [])
            return start, 0
        self._outpatient(end + self._minutes(10 * DAY, 60 * DAY), [])
        if self._chance(0.3):
            self.died = end + self._minutes(70 * DAY, 3 * YEAR)
        return None, 0

    def _own_drugs(self, z: Array, time: int) -> list[Event]:
        active = zip(self.drugs, z[DISEASES], strict=True)
        return [Event("drug", row, time) for row, on in active if on]

    def _codes(self, when: str, z: Array, low: int, high: int) -> list[Event]:
        rows = GROUPS[when]
        latent = LATENT[rows]
        chance = np.where(latent == AT["base"], BACKGROUND, np.where(z[latent], SHOWN, STRAY))
        rows = rows[self.rng.random(len(rows)) < chance]
        times = self.rng.integers(low, high, len(rows)) | 1  # midnight would mean "that day"
        pairs = zip(rows.tolist(), times.tolist(), strict=True)
        return [Event(CATALOG[row]["kind"], row, time) for row, time in pairs]

    def _panel(self, when: str, z: Array, time: int) -> list[Event]:
        rows = GROUPS[when]
        shift = SHIFT[rows] @ z + self.rng.standard_normal(len(rows))
        values = np.maximum(MEAN[rows] + SD[rows] * shift, SD[rows]).tolist()
        pairs = zip(rows.tolist(), values, strict=True)
        return [
            Event(CATALOG[row]["kind"], row, time, round(value, DIGITS[row]))
            for row, value in pairs
        ]
