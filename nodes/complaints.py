"""What ComfyUI only logs: it warns of a patch that does not fit, of a key that nobody reads, and goes on without it."""
import logging
import threading


class Listening(logging.Handler):
    """In a `with` block: appends to `lines` what this thread logs as a warning or worse."""

    def __init__(self, lines: list[str]):
        super().__init__(logging.WARNING)
        self.lines, self.thread_id = lines, threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        if record.thread == self.thread_id:
            self.lines.append(record.getMessage())

    def __enter__(self) -> "Listening":
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *error) -> None:
        logging.getLogger().removeHandler(self)
