"""The one error a user's mistake raises: it says what is wrong, where, and what would be right."""


class InputError(ValueError):
    """Bad input: a file, an option, a database or a record that cannot be used as it is.

    The message is one line, complete in itself: what is wrong, where, what would be right.
    A command prints it on stderr and exits with code 2; a widget shows it in place.
    """
