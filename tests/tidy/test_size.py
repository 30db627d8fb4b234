"""Files stay short enough to be read in one sitting."""

from __future__ import annotations

from tests.tidy import source

LINES_MAX = 600


def test_no_file_of_the_packages_is_longer_than_600_lines() -> None:
    """A longer one hides a noun that wants a file of its own."""
    long = [(n, file.name) for file in source.files(*source.PACKAGES) if (n := len(file.text.splitlines())) > LINES_MAX]
    assert not long, "\n".join(f"{name}: {n} lines, {LINES_MAX} at most" for n, name in sorted(long, reverse=True))
