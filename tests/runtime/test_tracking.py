"""Trackers: each row once however often a run is interrupted, and a tracker that is broken costs the run nothing."""

import csv
import json
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract import env
from capstan_runtime.contract import tracking as contract
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.tracking import feed as feeds
from capstan_runtime.tracking.feed import Feed
from capstan_runtime.tracking.files import Csv, Format, JsonLines, RowFile
from capstan_runtime.tracking.mlflow import MlflowSink
from capstan_runtime.tracking.place import SharedFolder, UploadedFolder
from capstan_runtime.tracking.sink import Point, RunFacts, Sink
from capstan_runtime.tracking.tensorboard import TensorBoardSink
from capstan_runtime.tracking.tracker import Tracker
from capstan_runtime.tracking.wandb import WandbSink
from tests.runtime.test_program import ProgramRun
from tests.runtime.test_program import train as train_program
from tests.support.mlflow_server import mlflow_server
from tests.support.training_runs import Run, run_trainers

FACTS = RunFacts(
    job="default/small",
    uid="3f1c-uid",
    fence=1,
    world=2,
    first_step=0,
    resumed_from=None,
    store="/store",
    config={"model": {"mlp": {"hidden": [4]}}, "training": {"steps": 30}},
)
RESUMED = replace(FACTS, fence=2, first_step=20, resumed_from="blake3:aa")
AT = 1_800_000_000.25
ROOT = "blake3:aa"


def point(step: int, checkpoint: str | None = None, **values: float) -> Point:
    return Point(step, AT + step, values, checkpoint)


FIRST_LIFE = [
    point(10, loss=0.5),
    point(20, loss=0.25),
    point(20, accuracy=0.75),
    point(20, ROOT),
    point(30, loss=0.125),
]
"""Of an attempt that is killed after step 30, and whose newest checkpoint is that of step 20."""
SECOND_LIFE = [point(20, accuracy=0.75), point(30, loss=0.1), point(30, accuracy=0.875)]
WHOLE = [
    {"step": 10, "fence": 1, "loss": 0.5},
    {"step": 20, "fence": 1, "loss": 0.25},
    {"step": 20, "fence": 1, "accuracy": 0.75},
    {"step": 20, "fence": 1, "checkpoint": ROOT},
    {"step": 30, "fence": 2, "loss": 0.1},
    {"step": 30, "fence": 2, "accuracy": 0.875},
]


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows but for their times, numbers as numbers."""
    if path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        with path.open(newline="") as file:
            found = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]
        found = [
            {name: cell if name in ("time", "checkpoint") else float(cell) for name, cell in row.items()}
            for row in found
        ]
    assert all(datetime.fromisoformat(row.pop("time")).utcoffset() == timedelta() for row in found)
    return found


FORMATS = pytest.mark.parametrize("form", [Csv(), JsonLines()], ids=lambda form: form.name)


@FORMATS
def test_rows_of_an_abandoned_timeline_are_left_out_and_none_is_there_twice(tmp_path: Path, form: Format) -> None:
    file = RowFile(form, SharedFolder(tmp_path), FACTS)
    file.write(FIRST_LIFE[:2])
    file.write(FIRST_LIFE[2:])
    file = RowFile(form, SharedFolder(tmp_path), RESUMED)
    assert rows(tmp_path / form.name) == WHOLE[:4]
    file.write(SECOND_LIFE)
    file.close(is_finished=True)
    assert rows(tmp_path / form.name) == WHOLE


@FORMATS
def test_a_line_that_was_torn_is_no_row_and_spoils_none(tmp_path: Path, form: Format) -> None:
    RowFile(form, SharedFolder(tmp_path), FACTS).write(FIRST_LIFE[:2])
    path = tmp_path / form.name
    path.write_bytes(path.read_bytes()[:-5])
    RowFile(form, SharedFolder(tmp_path), RESUMED).write([point(30, loss=0.1)])
    resumed = {"step": 20, "fence": 2, "checkpoint": ROOT}
    assert rows(path) == [WHOLE[0], resumed, {"step": 30, "fence": 2, "loss": 0.1}]


@FORMATS
def test_a_process_that_should_be_dead_writes_where_nobody_reads(tmp_path: Path, form: Format) -> None:
    stale = RowFile(form, SharedFolder(tmp_path), FACTS)
    stale.write(FIRST_LIFE[:4])
    RowFile(form, SharedFolder(tmp_path), RESUMED).write([point(30, loss=0.1)])
    stale.write([point(40, loss=9.0)])
    assert rows(tmp_path / form.name) == WHOLE[:5]


@FORMATS
def test_files_beside_a_bucket_are_uploaded_and_go_on_in_another_pod(tmp_path: Path, form: Format) -> None:
    store = FolderStore(tmp_path)  # speaks of objects as a bucket does, and nobody but `put` writes them here
    first = RowFile(form, UploadedFolder(store, "tracking"), FACTS)
    first.write(FIRST_LIFE[:1])
    assert rows(tmp_path / "tracking" / form.name) == WHOLE[:1]
    first.write(FIRST_LIFE[1:2])
    assert rows(tmp_path / "tracking" / form.name) == WHOLE[:1], "not at every row"
    first.write(FIRST_LIFE[2:4])
    assert rows(tmp_path / "tracking" / form.name) == WHOLE[:4], "but with a checkpoint"
    second = RowFile(form, UploadedFolder(store, "tracking"), RESUMED)
    second.write(SECOND_LIFE)
    second.close(is_finished=True)
    assert rows(tmp_path / "tracking" / form.name) == WHOLE


class Collector:
    """A sink that keeps what it gets, and does what `before` does first."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self.points: list[Point] = []
        self.ended: bool | None = None

    def write(self, points: Sequence[Point]) -> None:
        self._before()
        self.points += points

    def close(self, is_finished: bool) -> None:
        self.ended = is_finished


def ended(feed: Feed, seconds: float = 10.0) -> Feed:
    feed.end(is_finished=True)
    feed.wait(seconds)
    return feed


def test_a_tracker_gets_all_points_in_their_order_and_hears_of_the_end() -> None:
    sink, notes = Collector(), list[str]()
    tracker = Tracker([Feed("jsonl", lambda: sink, notes.append)], step=7)
    tracker.report(None, {"save_seconds": 1.0})
    tracker.report(10, {"loss": 0.5, "gradient_norm": math.nan})
    tracker.report(8, {}, ROOT)
    tracker.report(None, {"save_seconds": 2.0})
    tracker.close(is_finished=True, patience_seconds=10.0)
    told = [(each.step, dict(each.values), each.checkpoint) for each in sink.points]
    assert told == [
        (7, {"save_seconds": 1.0}, None),
        (10, {"loss": 0.5}, None),
        (8, {}, ROOT),
        (10, {"save_seconds": 2.0}, None),
    ]
    assert (sink.ended, notes, tracker.dropped) == (True, [], 0)


def test_a_slow_tracker_holds_nobody_up_and_what_it_missed_is_counted_and_told_once() -> None:
    may_write, notes = threading.Event(), list[str]()
    sink = Collector(lambda: may_write.wait(10.0))  # type: ignore[arg-type, return-value]
    feed = Feed("wandb", lambda: sink, notes.append)
    many = feeds._CAPACITY + feeds._BATCH + 100
    began = time.monotonic()
    for step in range(many):
        feed.put(point(step, loss=1.0))
    seconds = time.monotonic() - began
    may_write.set()
    ended(feed)
    assert seconds < 5.0, "it waited for the tracker"
    assert feed.dropped >= 100
    assert len(sink.points) + feed.dropped == many
    assert notes == [f"tracking.wandb: points are dropped: it takes points more slowly than they come, and "
                     f"{feeds._CAPACITY:,} wait"]  # fmt: skip


def test_a_tracker_that_does_not_come_to_an_end_is_left_behind() -> None:
    never, notes = threading.Event(), list[str]()
    feed = Feed("mlflow", lambda: Collector(lambda: never.wait(60.0)), notes.append)  # type: ignore[arg-type, return-value]
    feed.put(point(1, loss=1.0))
    began = time.monotonic()
    ended(feed, 0.1)
    assert time.monotonic() - began < 5.0
    assert feed.dropped == 1
    assert notes == ["tracking.mlflow: points are dropped: it had not taken all points when the run ended"]
    never.set()


def test_a_tracker_that_fails_gets_what_comes_when_it_works_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_AGAIN_SECONDS", 0.0)
    tries, notes, sink = list[int](), list[str](), Collector()

    def open_sink() -> Sink:
        tries.append(len(tries))
        if len(tries) < 3:
            raise ConnectionError("refused\nand a page of details")
        return sink

    feed = Feed("mlflow", open_sink, notes.append)
    for step in range(5):
        feed.put(point(step, loss=1.0))
        give_up_at = time.monotonic() + 10.0
        while len(sink.points) + feed.dropped <= step and time.monotonic() < give_up_at:
            time.sleep(0.001)
    ended(feed)
    assert [each.step for each in sink.points] == [2, 3, 4]
    assert (feed.dropped, notes) == (2, ["tracking.mlflow: points are dropped: ConnectionError: refused"])


def test_a_tracker_that_is_not_installed_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "_AGAIN_SECONDS", 0.0)
    tries, notes = list[int](), list[str]()

    def open_sink() -> Sink:
        tries.append(1)
        raise ModuleNotFoundError("No module named 'wandb'")

    feed = Feed("wandb", open_sink, notes.append)
    for step in range(3):
        feed.put(point(step, loss=1.0))
    assert (ended(feed).dropped, tries) == (3, [1])
    assert notes == ["tracking.wandb: points are dropped: ModuleNotFoundError: No module named 'wandb'"]


def test_a_run_that_was_killed_has_the_same_rows_as_one_that_was_not(tmp_path: Path) -> None:
    tracking = {"tracking": {"csv": {}, "jsonl": {}}}
    undisturbed, killed = (Run(tmp_path / name, overrides=tracking) for name in ("undisturbed", "killed"))
    (ended,) = run_trainers(undisturbed, world=1, AWAIT_SAVES="1")
    (first,) = run_trainers(killed, world=1, AWAIT_SAVES="1", FAULT_KIND="raise", FAULT_STEP="27")
    (second,) = run_trainers(killed, world=1, fence=2, floor_step=20, AWAIT_SAVES="1")
    assert (ended.code, second.code) == (0, 0), second.output
    assert first.code == ExitCode.APPLICATION
    for name in ("metrics.csv", "metrics.jsonl"):
        wanted, found = (courses(run.store / "tracking" / name) for run in (undisturbed, killed))
        assert found == wanted, name
        assert [step for step, _ in found["loss"]] == [5, 10, 15, 20, 25, 30]
        assert [step for step, _ in found["checkpoint"]] == [10, 20, 30]


def test_what_a_program_of_the_users_own_reports_is_tracked_too(tmp_path: Path) -> None:
    run = ProgramRun(tmp_path, overrides={"tracking": {"jsonl": {}}})
    (first,) = train_program(run, world=1, FAULT="raise@17")
    (second,) = train_program(run, world=1, fence=2, floor_step=10)
    assert (first.code, second.code) == (1, 0), second.output
    found = [json.loads(line) for line in (run.store / "tracking" / "metrics.jsonl").read_text().splitlines()]
    told = [(row["step"], row["fence"], row["rounds"]) for row in found if "rounds" in row]
    assert told == [(5, 1, 5), (10, 1, 10), (15, 2, 15), (20, 2, 20), (25, 2, 25), (30, 2, 30)]
    assert [row["step"] for row in found if "checkpoint" in row] == [10, 20, 30]


def courses(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """(step, value) of all that does not depend on the clock, in the order of rows; of checkpoints only their steps."""
    if path.suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
    told: dict[str, list[tuple[int, Any]]] = {
        name: [(int(row["step"]), float(row[name])) for row in found if row.get(name)]
        for name in ("loss", "gradient_norm", "learning_rate", "validation_loss", "accuracy")
    }
    told["checkpoint"] = [(int(row["step"]), None) for row in found if row.get("checkpoint")]
    return told


def test_trackers_that_cannot_work_stop_no_run_and_are_told_of_once(tmp_path: Path) -> None:
    nowhere = {"uri": "http://127.0.0.1:9", "experiment": "e", "secretName": "login"}
    run = Run(tmp_path, overrides={"tracking": {"mlflow": nowhere, "csv": {}}})
    (run.folder / "keys" / "mlflow").mkdir(parents=True)
    run.store.mkdir()
    (run.store / "tracking").write_text("this is no folder")
    more = {env.TRACKER_SECRETS: str(run.folder / "keys"), "AWAIT_SAVES": "1"}
    first, second = run_trainers(run, world=2, **more)
    assert (first.code, second.code) == (0, 0), first.output
    notes = sorted(each.note for each in first.progress if each.note)
    assert notes == [
        f"tracking.csv: points are dropped: FileExistsError: [Errno 17] File exists: '{run.store}/tracking'",
        "tracking.mlflow: points are dropped: OSError: the Secret of tracking.mlflow.secretName is missing, or has "
        "none of username, password, token",
    ]
    assert [each.note for each in second.progress if each.note] == []
    assert [each.metrics for each in first.progress if each.metrics][-1]["tracking_dropped_points"] > 10


def events(folder: Path) -> list[Any]:
    """What TensorBoard would read, files in the order of their names."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def test_tensorboard_is_told_what_to_forget(tmp_path: Path) -> None:
    for facts, life in ((FACTS, FIRST_LIFE), (RESUMED, SECOND_LIFE)):
        sink = TensorBoardSink(SharedFolder(tmp_path), facts)
        sink.write(life)
        sink.close(is_finished=True)
    told = events(tmp_path)
    scalars = [
        (event.step, value.tag, value.simple_value, event.wall_time)
        for event in told
        for value in event.summary.value
        if value.HasField("simple_value")
    ]
    assert scalars == [
        (each.step, name, np.float32(value), each.at)
        for each in (*FIRST_LIFE, *SECOND_LIFE)
        for name, value in each.values.items()
    ]
    assert [event.step for event in told if event.HasField("session_log")] == [1, 21]
    texts = [value.tag for event in told for value in event.summary.value if value.HasField("tensor")]
    assert texts == ["run/text_summary", "checkpoint/text_summary", "resumed_from/text_summary"]


def wandb_records(path: Path) -> list[Any]:
    """What `wandb sync` would upload: a log of LevelDB's format after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            found.append(Record.FromString(part))
            part = b""
    return found


def test_an_offline_run_of_wandb_is_there_to_be_uploaded(tmp_path: Path) -> None:
    plan = contract.WeightsAndBiases(project="digits", mode="offline")
    sink = WandbSink(plan, SharedFolder(tmp_path), FACTS, None)
    sink.write(FIRST_LIFE)
    sink.close(is_finished=True)
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = wandb_records(path)
    (run,) = [each.run for each in records if each.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.project, run.display_name) == ("3f1c-uid", "digits", "default/small")
    config = {each.key: json.loads(each.value_json) for each in run.config.update}
    assert config["run"] == FACTS.config
    history = [
        {item.nested_key[0]: json.loads(item.value_json) for item in each.history.item}
        for each in records
        if each.WhichOneof("record_type") == "history"
    ]
    told = [{name: row[name] for name in ("step", "fence", "loss", "accuracy") if name in row} for row in history]
    assert told == [{"step": each.step, "fence": 1, **each.values} for each in FIRST_LIFE]
    summary = {
        entry.key: entry.value_json
        for each in records
        if each.WhichOneof("record_type") == "summary"
        for entry in each.summary.update
    }
    assert (json.loads(summary["checkpoint"]), json.loads(summary["checkpoint_step"])) == (ROOT, 20)


def test_all_attempts_of_a_run_are_one_run_of_an_mlflow_server(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with mlflow_server(tmp_path) as address:
        plan = contract.MLflow(uri=address, experiment="digits")
        for facts, life in ((FACTS, FIRST_LIFE), (RESUMED, SECOND_LIFE)):
            sink = MlflowSink(plan, facts, None)
            sink.write(life)
            sink.close(is_finished=facts is RESUMED)
        client = MlflowClient(tracking_uri=address)
        experiment = client.get_experiment_by_name("digits")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        assert run.data.params == {"model.mlp.hidden": "[4]", "training.steps": "30"}
        tags = {name: value for name, value in run.data.tags.items() if name.startswith("capstan.")}
        assert tags == {
            "capstan.uid": "3f1c-uid",
            "capstan.job": "default/small",
            "capstan.store": "/store",
            "capstan.fence": "2",
            "capstan.world": "2",
            "capstan.resumedFrom": ROOT,
            "capstan.checkpoint": ROOT,
            "capstan.checkpointStep": "20",
        }
        loss, fence = (client.get_metric_history(run.info.run_id, name) for name in ("loss", "fence"))
        assert sorted((each.step, each.value, each.timestamp) for each in loss) == sorted(
            (each.step, each.values["loss"], int(each.at * 1000))
            for each in (*FIRST_LIFE, *SECOND_LIFE)
            if "loss" in each.values
        )
        assert {(each.step, each.value) for each in fence} == {(10, 1), (20, 1), (30, 1), (20, 2), (30, 2)}


ANSWERS: dict[str, dict[str, Any]] = {
    "/api/2.0/mlflow/experiments/get-by-name": {"experiment": {"experiment_id": "1", "name": "digits"}},
    "/api/2.0/mlflow/runs/search": {"runs": [{"info": {"run_id": "run", "experiment_id": "1", "status": "RUNNING"}}]},
}


@contextmanager
def recording_server() -> Iterator[tuple[str, list[str]]]:
    """Address of a server that knows a run, and the accounts it was asked with."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = json.dumps(ANSWERS.get(self.path.partition("?")[0], {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"username": "ada", "password": "quite-secret"}, "Basic YWRhOnF1aXRlLXNlY3JldA=="),
        ({"token": "quite-secret"}, "Bearer quite-secret"),
    ],
    ids=["a user", "a token"],
)
def test_an_mlflow_server_is_told_who_asks_and_no_other_process_is(
    keys: dict[str, str], expected: str, tmp_path: Path
) -> None:
    for key, value in keys.items():
        (tmp_path / key).write_text(f"{value}\n")
    with recording_server() as (address, accounts):
        sink = MlflowSink(contract.MLflow(uri=address, experiment="digits"), FACTS, tmp_path)
        sink.write(FIRST_LIFE)
        sink.close(is_finished=True)
    assert set(accounts) == {expected}
    assert len(accounts) > 4
    assert not [name for name, value in os.environ.items() if "quite-secret" in value]


def test_the_key_of_wandb_is_in_no_variable_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    key = "0123456789abcdef" * 2 + "01234567"
    (tmp_path / "keys" / "api-key").write_text(key)
    plan = contract.WeightsAndBiases(project="digits", mode="offline")
    sink = WandbSink(plan, SharedFolder(tmp_path), FACTS, tmp_path / "keys")
    found = [name for name, value in os.environ.items() if key in value]
    sink.close(is_finished=True)
    assert found == []
