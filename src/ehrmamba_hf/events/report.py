"""What an ingestion says about itself: nothing read is left out of the count."""

import msgspec

from ehrmamba_hf.fhir.reading import told_endings


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


class Report(msgspec.Struct, kw_only=True):
    """report.json of an events folder. Resources and events are counted apart: a resource can give
    several events (components, birth and death) or none (an encounter)."""

    format: str = "ehrmamba-events/1"
    source: str = "FHIR"  # or MEDS, whose rows are counted as resources of that type
    timezone: str | None
    files: int
    files_not_read: dict[str, int] = {}  # by ending
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
        others = told_endings(self.files_not_read)
        total, unused = self.total, sum(self.total.not_used.values())
        lines = [
            f"{total.read:,} resources read: {total.used:,} used, {unused:,} not used, "
            f"{total.rejected:,} rejected",
            f"{sum(self.events.values()):,} events and {self.encounters:,} encounters "
            f"of {self.subjects:,} patients",
            *([f"files not read: {others}"] if others else []),
            *(f"not used: {count:,} ({reason})" for reason, count in total.not_used.items()),
            *(f"warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)
