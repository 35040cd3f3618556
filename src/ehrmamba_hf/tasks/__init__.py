"""Clinical prediction tasks: cohort, index time, label; the six of the paper; the registry."""

from ehrmamba_hf.tasks.registry import register, registered, unregister, with_options
from ehrmamba_hf.tasks.task import MIN_CASES, Case, Example, Excluded, Task, label_stays

__all__ = [
    "MIN_CASES",
    "Case",
    "Example",
    "Excluded",
    "Task",
    "label_stays",
    "register",
    "registered",
    "unregister",
    "with_options",
]
