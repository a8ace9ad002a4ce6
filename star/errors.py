"""The one exception that the command line turns into a one-line message."""


class StarError(ValueError):
    """Bad input from the user: the message names the file, key or record and the mend."""
