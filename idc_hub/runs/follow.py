"""Follow a Run from outside: the state of every photograph, who works on it, how fast, and what went wrong.

Everything is read from the Run directory, so it does not matter who started the workers, or where. A Run can have tens
of thousands of photographs: each look lists the folders, and then reads only what is new.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from idc_hub.errors import RunError
from idc_hub.runs.claims import living_holder
from idc_hub.runs.run import Run, stems, whole_lines

if TYPE_CHECKING:
    from idc_hub.images.sources import Instance

SILENT_SECONDS = 120.0
"""A step that writes nothing for so long, and for five times as long as usual, may hang."""

STATES = ("finished", "running", "interrupted", "failed", "waiting", "damaged")


@dataclass
class Track:
    """What the metrics of a photograph say.

    Attributes:
        event: The latest event; empty before the first.
        start: The line of the latest start; empty before the first.
        logs: The two latest logged lines since that start.
        last: The latest logged line of any start; empty before the first.
    """

    event: str = ""
    start: dict[str, Any] = field(default_factory=dict)
    logs: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=2))
    last: dict[str, Any] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Take the next line."""
        self.event = line["event"]
        if self.event == "start":
            self.start = line
            self.logs.clear()
        elif self.event == "log":
            self.logs.append(line)
            self.last = line

    @property
    def step(self) -> int:
        """Steps done, as far as the metrics know."""
        return int(self.logs[-1]["step"] if self.logs else self.start.get("step", 0))

    @property
    def steps_per_second(self) -> float | None:
        """Between the two latest logged lines; None if there are not two of the same start."""
        if len(self.logs) < 2:
            return None
        seconds = self.logs[1]["seconds"] - self.logs[0]["seconds"]
        return (self.logs[1]["step"] - self.logs[0]["step"]) / seconds if seconds > 0 else None


class Follower:
    """Follows a Run; call `refresh` for each look.

    Args:
        run: The Run.
        with_finished: Read the metrics of photographs that are finished at the first look.

    Attributes:
        run: The Run.
        finished: Ids of photographs that have an instance file.
        tracks: What the metrics say, by id.
    """

    def __init__(self, run: Run, *, with_finished: bool = True) -> None:
        self.run = run
        self.finished: set[str] = set()
        self.tracks: dict[str, Track] = {}
        # Photographs that were finished when their metrics were read.
        self._read = set() if with_finished else stems(run.path / "instances", ".safetensors")
        self._offsets: dict[str, int] = {}
        self._damage: dict[str, str | None] = {}

    def refresh(self) -> None:
        """Read what is new in the metrics."""
        self.finished = stems(self.run.path / "instances", ".safetensors")
        for instance_id in stems(self.run.path / "metrics", ".jsonl") - self._read:
            self._follow(instance_id)
            if instance_id in self.finished:
                self._read.add(instance_id)

    def _follow(self, instance_id: str) -> None:
        offset = self._offsets.get(instance_id, 0)
        with (self.run.path / "metrics" / f"{instance_id}.jsonl").open("rb") as file:
            file.seek(offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offsets[instance_id] = offset + len(whole)
        *earlier, last, latest = b"", b"", *whole.splitlines(keepends=True)
        wanted = [line for line in earlier if b'"start"' in line]  # thousands of logged lines would take long to decode
        for line in whole_lines(b"".join([*wanted, last, latest])):
            self.tracks.setdefault(instance_id, Track()).add(line)

    def done(self) -> int:
        """Steps done times patches, summed over photographs: a measure of the work done."""
        steps = self.run.recipe.optimizer.steps
        return sum(instance.count * self.step(instance, steps) for instance in self.run.instances)

    def step(self, instance: Instance, steps: int) -> int:
        """Steps done of a photograph."""
        if instance.id in self.finished:
            return steps
        return self.tracks[instance.id].step if instance.id in self.tracks else 0

    def active(self) -> list[tuple[str, Track]]:
        """Photographs under way."""
        unfinished = [(name, track) for name, track in self.tracks.items() if name not in self.finished]
        return [(name, track) for name, track in unfinished if track.event in ("start", "log")]

    def status(self) -> dict[str, Any]:
        """The state of every photograph, as plain data: what `idc_hub.status` returns."""
        self.refresh()
        run, recipe = self.run, self.run.recipe
        steps = recipe.optimizer.steps if recipe.method == "idc" else 0
        names = {folder: stems(run.path / folder, suffix) for folder, suffix in _SUFFIXES.items()}
        instances = [self._describe(instance, steps, names) for instance in run.instances]
        states = Counter(entry["state"] for entry in instances)
        running = [entry for entry in instances if entry["state"] == "running"]
        speed = sum(entry["patches"] * entry["steps_per_second"] for entry in running if entry["steps_per_second"])
        to_make = [entry for entry in instances if entry["state"] not in ("finished", "failed")]
        left = sum(entry["patches"] * (entry["steps"] - entry["step"]) for entry in to_make)
        return {
            "run": str(run.path),
            "recipe": recipe.name,
            "lr_recipe_hash": recipe.lr_recipe_hash,
            "photographs": len(instances),
            "patches": sum(instance.count for instance in run.instances),
            **{state: states[state] for state in STATES},
            "workers": len({(entry["host"], entry["pid"]) for entry in running}),
            "eta_seconds": round(left / speed) if speed else None,
            "instances": instances,
        }

    def _describe(self, instance: Instance, steps: int, names: dict[str, set[str]]) -> dict[str, Any]:
        run, name = self.run, instance.id
        track = self.tracks.get(name, Track())
        step, error, speed, silent = track.step, None, None, None
        process: dict[str, Any] = track.start
        if name in names["failed"]:
            error = run.failure(instance)
        if name in self.finished:
            state, step, error = "finished", steps, self._damage_of(instance)
            if error:
                state = "damaged"
        elif name in names["locks"] and (holder := living_holder(run.path / "locks", name)):
            state, process, speed = "running", holder, track.steps_per_second
            silent = self._silence(name, speed)
        elif error:
            state = "failed"
        else:
            state = "interrupted" if name in names["partial"] else "waiting"
        return {
            "id": name,
            "state": state,
            "patches": instance.count,
            "step": step,
            "steps": steps,
            "resumed_from": track.start.get("step"),
            "host": process.get("host"),
            "pid": process.get("pid"),
            "steps_per_second": speed and round(speed, 3),
            "eta_seconds": round((steps - step) / speed) if speed else None,
            "silent_seconds": silent,
            "error": error,
            "last": {key: value for key, value in track.last.items() if key not in ("event", "step")},
        }

    def _damage_of(self, instance: Instance) -> str | None:
        """What is wrong with a finished file, which is read once."""
        if instance.id not in self._damage:
            try:
                self.run.check_patches(instance)
                self._damage[instance.id] = None
            except RunError as damaged:
                self._damage[instance.id] = damaged.message
        return self._damage[instance.id]

    def _silence(self, instance_id: str, speed: float | None) -> int | None:
        """Seconds since the last line of the metrics of a photograph under way; None if that is not unusual."""
        try:
            written = (self.run.path / "metrics" / f"{instance_id}.jsonl").stat().st_mtime
        except OSError:
            return None
        usual = self.run.recipe.workers.log_every / speed if speed else 0
        seconds = time.time() - written
        return round(seconds) if seconds > max(SILENT_SECONDS, 5 * usual) else None


_SUFFIXES = {"partial": ".safetensors", "failed": ".json", "locks": ".json"}
