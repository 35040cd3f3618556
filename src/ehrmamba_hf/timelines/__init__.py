"""Events to ordered visits; what was available at an index time; patient-level splits."""

from ehrmamba_hf.timelines.load import iter_records
from ehrmamba_hf.timelines.record import Diagnosis, Encounter, Record
from ehrmamba_hf.timelines.splits import SPLITS, SplitRules, split_of
from ehrmamba_hf.timelines.timeline import TimelineVisit, stays_of, timeline
from ehrmamba_hf.timelines.visits import Visit, VisitRules

__all__ = [
    "SPLITS",
    "Diagnosis",
    "Encounter",
    "Record",
    "SplitRules",
    "TimelineVisit",
    "Visit",
    "VisitRules",
    "iter_records",
    "split_of",
    "stays_of",
    "timeline",
]
