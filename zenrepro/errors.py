"""The one error that users see as a single line."""


class InputError(Exception):
    """Bad input or usage: the message is one line that names the thing, the place and the mend.

    The command line prints the message without a traceback and exits with status 2; a notebook
    shows the line alone. What cannot be printed (a line break in a key of the input) is shown
    escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback."""
        return [f"InputError: {self}"]
