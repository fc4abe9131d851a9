"""Metrics as rows of a file: comma-separated values, or JSON lines.

A file holds each report once, however often the run was interrupted: what an earlier attempt wrote of steps after the
one that this attempt goes on from is left out when it begins. The file is replaced then, never cut: a process that
should be dead has the old one open, and writes there.
"""

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from capstan_runtime.tracking.place import Place
from capstan_runtime.tracking.sink import Point, RunFacts

Row = dict[str, str | int | float]
_FIXED = ("step", "time", "fence")
_CHECKPOINT = "checkpoint"


class Format(Protocol):
    """How rows are spelled."""

    name: str
    """Of the file."""

    def read(self, text: str) -> Iterator[Row]:
        """The rows of a file's whole lines; one that cannot be read is left out."""
        ...

    def head(self, columns: Sequence[str]) -> str:
        """What comes before the rows."""
        ...

    def spell(self, row: Row, columns: Sequence[str]) -> str:
        """One line, with its end."""
        ...

    needs_columns: bool
    """A row with a column that `head` did not name needs another head."""


class JsonLines:
    """One object a line."""

    name = "metrics.jsonl"
    needs_columns = False

    def read(self, text: str) -> Iterator[Row]:
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row

    def head(self, columns: Sequence[str]) -> str:
        return ""

    def spell(self, row: Row, columns: Sequence[str]) -> str:
        return json.dumps(row) + "\n"


class Csv:
    """RFC 4180 with a head; an empty cell is no value."""

    name = "metrics.csv"
    needs_columns = True

    def read(self, text: str) -> Iterator[Row]:
        for cells in csv.DictReader(io.StringIO(text)):
            if None in cells or None in cells.values() or not str(cells.get("step", "")).isdecimal():
                continue  # a line that was torn, or is none of ours
            yield {**{name: value for name, value in cells.items() if value != ""}, "step": int(cells["step"])}

    def head(self, columns: Sequence[str]) -> str:
        return _line(columns)

    def spell(self, row: Row, columns: Sequence[str]) -> str:
        return _line([row.get(name, "") for name in columns])


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


class RowFile:
    """A sink that appends rows, whole lines at a time."""

    def __init__(self, form: Format, place: Place, facts: RunFacts) -> None:
        """Raises OSError."""
        self._form = form
        self._place = place
        self._fence = facts.fence
        self._first_step = facts.first_step
        place.fetch(form.name)
        self._path = place.path / form.name
        text = self._path.read_text() if self._path.exists() else ""
        rows = [row for row in form.read(text[: text.rfind("\n") + 1]) if int(row["step"]) <= facts.first_step]
        self._known = {name for row in rows if row["step"] == facts.first_step for name in row}
        """Of the step that this attempt goes on from: what it reports of it again is there already."""
        self._columns = list(dict.fromkeys([*_FIXED, *(name for row in rows for name in row)]))
        self._descriptor = self._replace(rows)
        if facts.resumed_from is not None and _CHECKPOINT not in self._known:
            self.write([Point(facts.first_step, datetime.now(UTC).timestamp(), {}, facts.resumed_from)])

    def write(self, points: Sequence[Point]) -> None:
        rows = [row for point in points if (row := self._row(point)) is not None]
        fresh = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in self._columns]
        if fresh:
            self._columns += fresh
            if self._form.needs_columns:
                self._widen()
        self._append("".join(self._form.spell(row, self._columns) for row in rows))
        self._place.keep(at_once=any(point.checkpoint is not None for point in points))

    def close(self, is_finished: bool) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._place.keep(at_once=True)

    def _row(self, point: Point) -> Row | None:
        """None: the file has it."""
        values: Mapping[str, str | float] = point.values
        if point.checkpoint is not None:
            values = {**values, _CHECKPOINT: point.checkpoint}
        if point.step <= self._first_step:
            values = {name: value for name, value in values.items() if name not in self._known}
        if not values:
            return None
        time = datetime.fromtimestamp(point.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"step": point.step, "time": time, "fence": self._fence, **values}

    def _widen(self) -> None:
        """The same rows below a longer head."""
        rows = list(self._form.read(self._path.read_text()))
        os.close(self._descriptor)
        self._descriptor = self._replace(rows)

    def _replace(self, rows: Iterable[Row]) -> int:
        """The file holds `rows` and is open for more."""
        part = self._path.with_name(f"{self._path.name}.part")
        with part.open("w") as file:
            file.write(self._form.head(self._columns))
            file.writelines(self._form.spell(row, self._columns) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(part, os.O_WRONLY | os.O_APPEND)
        part.replace(self._path)
        return descriptor

    def _append(self, text: str) -> None:
        """All of `text` or, on a disk that is full, nothing of it. Raises OSError."""
        data = text.encode()
        size = os.fstat(self._descriptor).st_size
        written = os.write(self._descriptor, data)
        if written != len(data):
            os.ftruncate(self._descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
