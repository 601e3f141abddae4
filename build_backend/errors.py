"""The one exception of the build: a sentence for the user, shown without a traceback."""


class BuildError(SystemExit):
    """Ends the build with `adl_kernels: <message>` on stderr and exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(f"adl_kernels: {message}")
