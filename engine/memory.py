"""How much memory this process really holds: anonymous and shared pages, without the file cache that the system may drop."""
import psutil

STATUS = "/proc/self/status"


def held_bytes() -> int:
    """RssAnon + RssShmem where the kernel tells them (Linux), else the resident set less what is shared."""
    try:
        with open(STATUS, encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file if line.startswith(("RssAnon", "RssShmem")))
        return sum(int(value.split()[0]) * 1024 for value in lines.values())
    except OSError:
        info = psutil.Process().memory_info()
        return info.rss - getattr(info, "shared", 0)


class Peak:
    """The highest `held_bytes` seen, above where it started."""

    def __init__(self) -> None:
        self.start = self.top = held_bytes()

    def look(self) -> None:
        self.top = max(self.top, held_bytes())

    @property
    def nbytes(self) -> int:
        return self.top - self.start
