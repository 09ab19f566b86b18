"""The errors a user is meant to read. Anything else that escapes is a bug in seqapp."""


class SeqappError(Exception):
    """What was wrong, where, and what would fit. The command line prints it without a traceback."""


STOPPED = 130
"""The exit status of what Ctrl-C has ended, as shells have it."""


class Stopped(SeqappError):
    """The user has stopped it; the message says how to go on, and the exit status is :data:`STOPPED`."""


class ConfigError(SeqappError):
    """A config, an override or an option does not fit."""


class DataError(SeqappError):
    """A data file cannot be used as it stands."""


class BundleError(SeqappError):
    """A bundle directory is damaged, foreign, or of a version this program does not know."""
