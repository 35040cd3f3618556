"""The errors that a user of the package meets: each says what was expected, found, and where."""


class EHRMambaError(Exception):
    """Base class of all errors raised on purpose; the command line prints them without a trace."""


class InputError(EHRMambaError):
    """Something given by the user (a folder, a file, a flag, a record) cannot be used."""


class SchemaError(EHRMambaError):
    """A record that crosses a stage's border breaks one of its rules."""


class OutputError(EHRMambaError):
    """A result cannot be written: the disk is full, or the folder is read-only."""
