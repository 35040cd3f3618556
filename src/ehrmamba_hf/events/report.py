"""What an ingestion says about itself: nothing read is left out of the count."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from ehrmamba_hf.events.parts import Tally


class Outcome(msgspec.Struct):
    """What became of the resources of one type: read = used + not used + rejected."""

    read: int = 0
    used: int = 0
    not_used: dict[str, int] = {}  # by reason
    rejected: int = 0


class SystemUse(msgspec.Struct):
    """How many events have a code of a system, and whether the registry knows it."""

    events: int
    known: bool = True
    url: str = ""  # of one that is not known


class Summary:
    """What is counted shard by shard over what was written."""

    def __init__(self, subjects: int, encounters: int, orphans: int) -> None:
        self.subjects = subjects
        self.encounters = encounters
        self.outcomes: list[Any] = []  # (resource type, why not used or None, how many)
        self.events: Counter[str] = Counter()  # by category
        self.years: Counter[str] = Counter()
        self.systems: Counter[str] = Counter()
        self.codes: set[str] = set()
        self.unresolved: dict[str, int] = {"Encounter.partOf": orphans} if orphans else {}
        self._times: list[str] = []

    def add(self, counted: dict[str, Any]) -> None:
        """Add what a shard told."""
        self.outcomes += counted["outcomes"]
        for category, code, year, first, last, count in counted["counts"]:
            self.events[category] += count
            self.codes.add(code)
            self.systems[code.partition("/")[0]] += count
            if category not in ("birth", "death"):
                self.years[str(year)] += count
                self._times += [first, last]
        for name, count in counted["dangling"]:
            self.unresolved[name] = self.unresolved.get(name, 0) + count

    def system_use(self, unknown: dict[str, str]) -> dict[str, SystemUse]:
        """The systems of the events' codes. `unknown`: names of those not known, to their URL."""
        return {
            name: SystemUse(count, name not in unknown, unknown.get(name, ""))
            for name, count in sorted(self.systems.items())
            if not name.startswith("MEDS_")  # births and deaths
        }

    @property
    def date_range(self) -> list[str]:
        """The first and the last time of an event other than births and deaths."""
        return [min(self._times), max(self._times)] if self._times else []


class Report(msgspec.Struct, kw_only=True):
    """report.json of an events folder. Resources and events are counted apart: a resource can give
    several events (components, birth and death) or none (an encounter)."""

    format: str = "ehrmamba-events/1"
    source: str = "FHIR"  # or MEDS, whose rows are counted as resources of that type
    timezone: str | None
    files: int
    lines: int
    blank_lines: int
    bundles: int
    resources: dict[str, Outcome]  # by type; "unknown" where a record does not even say
    total: Outcome
    subjects: int
    encounters: int
    events: dict[str, int]  # by category
    events_by_year: dict[str, int]  # other than births and deaths
    date_range: list[str]  # first and last event other than births and deaths
    systems: dict[str, SystemUse]  # by short name
    unknown_code_systems: dict[str, int]  # by URL, in codings read
    text_only_codes: int  # concepts without any code
    notes: dict[str, int]  # what was left out of resources that are used
    observations_without_category: int
    unresolved_references: dict[str, int]  # by field, in resources used
    warnings: list[str]

    def summary(self) -> str:
        """A few lines for the terminal."""
        total, unused = self.total, sum(self.total.not_used.values())
        lines = [
            f"{total.read:,} resources read: {total.used:,} used, {unused:,} not used, "
            f"{total.rejected:,} rejected",
            f"{sum(self.events.values()):,} events and {self.encounters:,} encounters "
            f"of {self.subjects:,} patients",
            *(f"not used: {count:,} ({reason})" for reason, count in total.not_used.items()),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)


def outcomes_of(
    tally: Tally, decoded: Iterable[tuple[str, str | None, int]]
) -> tuple[dict[str, Outcome], Outcome]:
    """Outcomes by type and in total. `decoded`: (type, why not used or None, how many)."""
    by_type = {kind: Outcome(read=count) for kind, count in sorted(tally.read.items())}
    for kind, count in tally.rejected.items():
        by_type[kind].rejected = count
    for kind, count in tally.other_types.items():
        by_type[kind].not_used = {"type not used": count}
    for kind, reason, count in sorted(decoded, key=lambda row: str(tuple(row))):
        if reason is None:
            by_type[kind].used += count
        else:
            not_used = by_type[kind].not_used
            not_used[reason] = not_used.get(reason, 0) + count
    total = Outcome()
    for outcome in by_type.values():
        total.read += outcome.read
        total.used += outcome.used
        total.rejected += outcome.rejected
        for reason, count in outcome.not_used.items():
            total.not_used[reason] = total.not_used.get(reason, 0) + count
    return by_type, total


def warnings_of(tally: Tally, timezone: str | None) -> list[str]:
    """What the user should know before trusting the numbers."""
    warnings = []
    if tally.met_utc and not tally.met_other and timezone is None:
        warnings.append(
            "All times are written in UTC: without a timezone, days and nights are not the "
            "hospital's. Give the hospital's timezone."
        )
    if tally.observations_without_category:
        warnings.append(
            f"{tally.observations_without_category} Observations have no category: they are "
            "'observation' events, not 'lab' or 'vital_sign'."
        )
    return warnings
