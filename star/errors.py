"""Errors that the command line turns into one line on standard error and an exit status."""


class StarError(ValueError):
    """Bad input from the user: the message names the file, key or record and the mend."""

    status = 1  # of the process


class Interrupted(StarError):
    """The process was asked to stop (`star.interruption`), and its work is saved: run the same command again."""

    status = 75  # "try again later" of sysexits.h
