"""What does a Run of very many photographs cost beside the condensing?

    python benchmarks/size.py 1000 10000 85000 [--patches 15] [--json]

Each photograph takes its patches at once from a fake network, so that what is left is the work of the Run directory:
starting, claiming, recording, status, progress and packing. Every stage runs in a process of its own; seconds are those
of the processor, `peak` is the largest resident memory of any stage. Polls are what each of many workers does again and
again at the end, when another process has the last photograph.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import idc_hub
from idc_hub.dataset.pack import pack
from idc_hub.images.sources import Instance
from idc_hub.recipe import Recipe
from idc_hub.runs import worker
from idc_hub.runs.claims import this_process
from idc_hub.runs.progress import show_progress
from idc_hub.runs.run import Run

SIDE = 48


def fake(run: Run, instances: list[Instance], *_: object) -> None:
    """Instead of condensing: patches and metrics of the usual size."""
    (instance,) = instances
    run.append_metrics(instance.id, {"event": "start", "step": 0, **this_process(), "time": time.time()})
    for step in range(20):
        run.append_metrics(instance.id, {"event": "log", "step": step, "instance": 0.1, "group": 0.2, "pair": 0.3})
    patches = torch.full((instance.count, 3, SIDE, SIDE), len(instance.id), dtype=torch.uint8)
    facts = {"steps": 20, "held_out": 1.0, "held_out_random": 1.0, "nearest_real": [1.0] * instance.count}
    run.write_patches(instance, patches, facts)
    run.append_metrics(instance.id, {"event": "end", "seconds": 0.0, "time": time.time()})


def work(path: Path) -> None:
    """A worker with the fake network, until nothing is left."""
    import idc_hub.images.sources
    import idc_hub.networks.extractors

    class Nothing:
        network = None

    idc_hub.networks.extractors.load_extractor = lambda *_, **__: Nothing()  # type: ignore[assignment]
    idc_hub.images.sources.open_source = lambda **_: None  # type: ignore[assignment]
    worker.condense_claimed = fake
    worker.work(Run.open(path), torch.device("cpu"))


def poll(path: Path) -> float:
    """Ten polls while another process has the last photograph."""
    last = Run.open(path).instances[-1].id
    if not (holder := os.fork()):
        with Run.open(path).claim(last):
            time.sleep(3600)
    while not (path / "locks" / f"{last}.json").is_file():
        time.sleep(0.01)
    begun: list[float] = []

    def sleep(_: float) -> None:
        begun.append(time.process_time())
        if len(begun) > 10:
            raise StopIteration

    worker.time = SimpleNamespace(sleep=sleep, time=time.time)  # type: ignore[assignment]
    try:
        work(path)
    except StopIteration:
        return begun[10] - begun[0]
    finally:
        os.kill(holder, signal.SIGKILL)
    raise AssertionError("the last photograph was free")


def follow(path: Path) -> float:
    """Progress for ten seconds."""
    run = Run.open(path)
    begun = time.process_time()
    with show_progress(run, lambda event: None):
        time.sleep(10)
    return time.process_time() - begun


def in_a_process(stage: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds of a stage, or what it returns instead, and its peak memory in MB."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        code = 1
        try:
            found = stage()
            os.write(writer, str(found if isinstance(found, float) else "").encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit("a stage failed")
    with os.fdopen(reader) as returned:
        seconds = returned.read()
    return float(seconds or used.ru_utime + used.ru_stime), used.ru_maxrss / 1024


def measure(photographs: int, patches: int) -> dict[str, Any]:
    """All stages for one number of photographs."""
    changes = {"name": "size", "source": {"path": "/nowhere"}, "patches": {"size": SIDE, "stride": SIDE}}
    changes["workers"] = {"batch": 1}
    recipe = Recipe.from_dict(changes)
    instances = [
        Instance(f"{n:06d}", f"{n:06d}.png", "0" * 64, 2040, 1356, 10 * patches, patches) for n in range(photographs)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        found, peak = {}, 0.0

        def stage(name: str, action: Callable[[], object]) -> None:
            nonlocal peak
            seconds, memory = in_a_process(action)
            found[name], peak = round(seconds, 2), max(peak, memory)

        stage("create", lambda: Run.create(path, recipe, instances, {}))
        stage("open", lambda: Run.open(path))
        stage("work", lambda: work(path))
        stage("progress, 10 s", lambda: follow(path))
        Run.open(path).instance_file(instances[-1].id).unlink()
        stage("10 polls", lambda: poll(path))
        stage("start, 1 left", lambda: work(path))
        stage("status", lambda: idc_hub.status(path))
        stage("pack", lambda: pack(Run.open(path), workers=2))
        return {"photographs": photographs, **found, "peak, MB": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=int, nargs="+")
    parser.add_argument("--patches", type=int, default=15, help="patches of each photograph")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = []
    for photographs in options.photographs:
        rows.append(measure(photographs, options.patches))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0]), sep="\n")
    for row in rows:
        print("| " + " | ".join(f"{value:,}" for value in row.values()) + " |")


if __name__ == "__main__":
    main()
