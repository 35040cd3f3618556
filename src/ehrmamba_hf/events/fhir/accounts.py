"""What the blocks and the shards counted, added up to the report of an ingestion."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ehrmamba_hf.events.fhir.parts import Tally
from ehrmamba_hf.events.metadata import CodeNote
from ehrmamba_hf.events.report import Outcome, Report, SystemUse
from ehrmamba_hf.fhir.codebook import Codebook
from ehrmamba_hf.fhir.reading import Found


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


def report_of(
    tally: Tally, summary: Summary, found: Found, timezone: str | None, book: Codebook
) -> Report:
    """The report of what was counted block by block and shard by shard."""
    unknown = {book.system(url).name: url for url in sorted(tally.unknown_systems)}
    resources, total = outcomes_of(tally, summary.outcomes)
    return Report(
        timezone=timezone,
        files=len(found.files),
        files_not_read=found.others,
        lines=tally.lines,
        blank_lines=tally.blank_lines,
        bundles=tally.bundles,
        resources=resources,
        total=total,
        subjects=summary.subjects,
        encounters=summary.encounters,
        events=dict(sorted(summary.events.items())),
        events_by_year=dict(sorted(summary.years.items())),
        date_range=summary.date_range,
        unknown_code_systems=dict(sorted(tally.unknown_systems.items())),
        systems=summary.system_use(unknown),
        text_only_codes=tally.text_only,
        notes=dict(sorted(tally.notes.items())),
        observations_without_category=tally.observations_without_category,
        unresolved_references=dict(sorted(summary.unresolved.items())),
        warnings=warnings_of(tally, timezone),
    )


def notes_of(tally: Tally, summary: Summary) -> list[tuple[str, CodeNote]]:
    """The codes that were written, each with its most frequent display.

    Of equally frequent ones, the first in the alphabet.
    """
    best: dict[str, tuple[int, str]] = {}
    for text, count in tally.displays.items():
        code, display = text.split("\n", 1)
        if code not in best or (-count, display) < (-best[code][0], best[code][1]):
            best[code] = count, display
    nothing = 0, None
    return [(code, CodeNote(best.get(code, nothing)[1])) for code in summary.codes]


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
