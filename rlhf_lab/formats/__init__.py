"""Human feedback from files and to files, in the formats of the field. No torch, no screen.

    feedback = feedback_of(store)                        # questions and answers, as one value
    print(write_feedback("pairs.jsonl", feedback, "trl"))  # how many were written, and what the form has no place for
    import_into(store, read_feedback("export.json"))     # whole or not at all; twice is the same as once

`FORMATS` names them all; docs/formats.md says what each one carries. `read_pairs` and `write_pairs` are the short way
for preference pairs as `Comparison` records.
"""

from .catalogue import (
    FORMATS,
    WRITTEN,
    Format,
    detect_format,
    from_dataset,
    read_feedback,
    to_dataset,
    write_feedback,
)
from .feedback import IMPORTED, Feedback, Report, Withdrawal, feedback_of, import_into
from .pairs import PAIR_FORMS, PairForm, read_pairs, write_pairs

__all__ = [
    "FORMATS",
    "IMPORTED",
    "PAIR_FORMS",
    "WRITTEN",
    "Feedback",
    "Format",
    "PairForm",
    "Report",
    "Withdrawal",
    "detect_format",
    "feedback_of",
    "from_dataset",
    "import_into",
    "read_feedback",
    "read_pairs",
    "to_dataset",
    "write_feedback",
    "write_pairs",
]
