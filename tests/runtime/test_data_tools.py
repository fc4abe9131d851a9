"""`capstan data`: token files made of text, packed without a token lost, and looked at; and writers that are killed."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from capstan_runtime.contract.data import Data
from capstan_runtime.data.open import open_samples
from capstan_runtime.data_tools import token_folder
from capstan_runtime.data_tools.cli import main
from capstan_runtime.data_tools.packing import Stream, cuts, find_documents
from capstan_runtime.data_tools.token_folder import MANIFEST, read_folder
from capstan_runtime.data_tools.tokenizing import shards_of

END = 9
TEXTS = {"a.txt": "To be, or not to be: ü", "b/c.txt": "that is the question\n" * 50, "d.txt": "", "e.txt": "αβγ\n"}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for name, content in TEXTS.items():
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "text" / "f.csv").write_text("not asked for")
    return tmp_path / "text"


def tokens_in(folder: Path) -> list[np.ndarray]:
    made = read_folder(folder)
    assert made is not None
    return [np.fromfile(folder / file.name, np.dtype(made.dtype).newbyteorder("<")) for file in made.files]


documents = st.lists(st.lists(st.integers(0, END - 1), max_size=12), min_size=1, max_size=12)


@given(
    parts=st.lists(documents, min_size=1, max_size=3),
    length=st.integers(1, 9),
    per_file=st.integers(1, 4),
    chance=st.randoms(use_true_random=False),
)
def test_packing_loses_no_token_and_every_token_but_the_first_is_predicted_once(
    parts: list[list[list[int]]], length: int, per_file: int, chance: Any
) -> None:
    files = [np.asarray([token for each in part for token in (*each, END)]) for part in parts]
    found = find_documents(files, END)
    order = np.asarray(chance.sample(range(len(found.lengths)), len(found.lengths)), np.int64)
    stream = Stream(found, order)
    whole = [(*each, END) for part in parts for each in part]
    expected = [token for number in order for token in whole[number]]
    packed = [
        np.concatenate([*stream.read(first, count), np.full(max(0, first + count - stream.tokens), END)])
        for first, count in cuts(stream.tokens, length, per_file)
    ]
    assert all((len(file) - 1) % length == 0 and len(file) <= per_file * length + 1 for file in packed)
    assert all(before[-1] == after[0] for before, after in pairwise(packed))
    joined = np.concatenate([packed[0], *(file[1:] for file in packed[1:])]).tolist()
    assert joined[: len(expected)] == expected
    assert joined[len(expected) :] == [END] * (len(joined) - len(expected))
    assert len(joined) - len(expected) <= length


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_every_document_is_in_one_file_and_a_file_ends_where_it_is_full(sizes: list[int], most: int) -> None:
    shards = shards_of(sizes, most)
    assert [number for shard in shards for number in shard] == list(range(len(sizes)))
    assert all(sum(sizes[number] for number in shard[:-1]) < most for shard in shards)


def test_bytes_are_tokens_and_each_document_has_its_end(text: Path, tmp_path: Path) -> None:
    assert main(["tokenize", str(text), "--to", str(tmp_path / "out"), "--bytes"]) == 0
    expected = [token for name in sorted(TEXTS) for token in (*TEXTS[name].encode(), 256)]
    assert np.concatenate(tokens_in(tmp_path / "out")).tolist() == expected
    made = read_folder(tmp_path / "out")
    assert made is not None
    assert (made.vocabulary, made.end_of_text, made.documents, made.dtype) == (257, 256, 4, "uint16")


def test_a_tokenizer_is_trained_the_same_each_time_and_gives_the_text_back(text: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["tokenize", str(text), "--to", str(tmp_path / name), "--vocabulary", "280"]) == 0
    given = ["--tokenizer", str(tmp_path / "one" / "tokenizer.json")]
    assert main(["tokenize", str(text), "--to", str(tmp_path / "three"), *given]) == 0
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir() if file.name != "PLAN.json"}
        for name in ("one", "two", "three")
    ]
    assert contents[0] == contents[1] == contents[2]
    made = read_folder(tmp_path / "one")
    assert made is not None
    assert made.vocabulary == 280
    tokenizer = Tokenizer.from_file(str(tmp_path / "one" / "tokenizer.json"))
    ids = np.concatenate(tokens_in(tmp_path / "one"))
    decoded = [tokenizer.decode(part.tolist()) for part in np.split(ids, np.flatnonzero(ids == made.end_of_text) + 1)]
    assert decoded[:4] == [TEXTS[name] for name in sorted(TEXTS)]


def test_a_job_reads_what_was_packed(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", str(text), "--to", str(tmp_path / "out"), "--bytes"]) == 0
    options = ["--sequence-length", "16", "--file-samples", "10", "--seed", "3"]
    capsys.readouterr()
    assert main(["pack", str(tmp_path / "out"), "--to", str(tmp_path / "packed"), *options]) == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert main(["inspect", str(tmp_path / "job.yaml"), "--output", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    tokens = sum(len(content.encode()) + 1 for content in TEXTS.values())
    assert report["samples"] == -(-(tokens - 1) // 16)
    lengths = [len(content.encode()) for content in TEXTS.values() if content]
    assert {name: report["lengths"][name] for name in ("documents", "minimum", "maximum")} == {
        "documents": len(lengths),
        "minimum": min(lengths),
        "maximum": max(lengths),
    }, "what fills the last file is no document"
    data = Data.parse({"tokens": {"path": str(tmp_path / "packed"), "vocabulary": 257, "sequenceLength": 16}})
    samples, _ = open_samples(data, {})
    _, targets = samples.fetch(np.arange(len(samples)))
    counts = np.bincount(np.concatenate(tokens_in(tmp_path / "out")), minlength=257)
    predicted = np.bincount(targets.ravel(), minlength=257)
    first = tokens_in(tmp_path / "packed")[0][0]
    counts[first] -= 1
    counts[256] += predicted.sum() - counts.sum()  # what fills the last file
    assert predicted.tolist() == counts.tolist()


class Killed(BaseException):
    """Nothing is done after it."""


@pytest.mark.parametrize("at", range(8))
def test_a_writer_that_is_killed_anywhere_is_gone_on_with_to_the_same_bytes(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def made_at(name: str) -> dict[str, bytes]:
        assert main(["tokenize", str(text), "--to", str(tmp_path / f"{name}-tokens"), "--bytes"]) == 0
        options = ["--sequence-length", "8", "--file-samples", "40"]
        assert main(["pack", str(tmp_path / f"{name}-tokens"), "--to", str(tmp_path / name), *options]) == 0
        made = {}
        for what in (f"{name}-tokens", name):
            for file in (tmp_path / what).iterdir():
                made[f"{what.removeprefix(name)}/{file.name}"] = file.read_bytes()
        return made

    expected = made_at("whole")
    write, calls = token_folder.write_whole, [0]

    def killed(path: Path, pieces: Any) -> None:
        calls[0] += 1
        if calls[0] == at + 1:
            path.with_name(f"{path.name}.part").write_bytes(b"torn")
            raise Killed
        write(path, pieces)

    monkeypatch.setattr(token_folder, "write_whole", killed)
    with pytest.raises(Killed):
        made_at("again")
    monkeypatch.setattr(token_folder, "write_whole", write)
    assert made_at("again") == expected


def test_a_folder_of_something_else_is_left_alone(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["tokenize", str(text), "--to", str(out), "--bytes"]) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (text / "a.txt").write_text("other text")
    assert main(["tokenize", str(text), "--to", str(out), "--bytes"]) == 2
    assert "holds what was made of other text, or in another way; choose another folder" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert main(["tokenize", str(text), "--to", str(text), "--bytes"]) == 2
    assert "is not empty, and nothing in it says what it is; choose another folder" in capsys.readouterr().err


def latin(text: Path) -> None:
    (text / "b" / "c.txt").write_bytes(b"caf\xe9")


def without_end(text: Path) -> None:
    Tokenizer(models.BPE()).save(str(text / "t.json"))


@pytest.mark.parametrize(
    ("prepare", "arguments", "says"),
    [
        (
            latin,
            ["--vocabulary", "300", "--training-mib", "1"],
            "c.txt: byte 3 is not UTF-8; convert the file, or give --bytes",
        ),
        (lambda text: None, ["--vocabulary", "100"], "--vocabulary: 100 is too few; each byte and the end of text"),
        (lambda text: None, ["--bytes", "--pattern", "*.md"], "no file of it matches *.md; correct the path, or"),
        (
            lambda text: (text / "t.json").write_text("{}"),
            ["--tokenizer", "{text}/t.json"],
            "t.json: is no tokenizer.json: ",
        ),
        (without_end, ["--tokenizer", "{text}/t.json"], "t.json: has no token <|endoftext|>, which stands between"),
        (
            lambda text: None,
            ["--tokenizer", "{text}/none.json"],
            "--tokenizer: {text}/none.json cannot be read: No such file or directory; give a tokenizer.json",
        ),
        (shutil.rmtree, ["--bytes"], "TEXT: {text} is not there; correct it"),
        (lambda text: None, ["--bytes", "--to", "{text}/a.txt/x"], "--to: {text}/a.txt/x cannot be made a folder: Not"),
    ],
)
def test_text_and_tokenizers_that_cannot_be_used_are_refused_in_one_line(
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], object],
    arguments: list[str],
    says: str,
) -> None:
    prepare(text)
    filled = [each.replace("{text}", str(text)) for each in arguments]
    assert main(["tokenize", str(text), "--to", str(tmp_path / "out"), *filled]) == 2
    error = capsys.readouterr().err
    assert (error.startswith("capstan data: "), error.count("\n")) == (True, 1)
    assert says.replace("{text}", str(text)) in error
    assert not (tmp_path / "out").exists()


def test_text_that_may_not_be_read_is_no_bucket_that_does_not_answer(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object) -> None:  # as root, tests may read everything
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    assert main(["tokenize", str(text), "--to", str(tmp_path / "out"), "--bytes"]) == 2
    assert capsys.readouterr().err == f"capstan data: {text}/a.txt: Permission denied\n"


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("--seed", "-1", 0), ("--sequence-length", "1", 2), ("--file-samples", "9" * 20, 1), ("--seed", "x", 0)],
)
def test_a_number_that_cannot_be_is_refused_by_the_parser(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, least: int
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(text), "--to", str(tmp_path / "packed"), "--sequence-length", "8", option, value])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"error: argument {option}: '{value}' is no whole number from {least} to 2,147,483,647; give one\n"
    )


def test_what_would_be_a_single_sample_is_not_packed(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tokenize", str(text), "--to", str(tmp_path / "out"), "--bytes"]) == 0
    tokens = sum(len(content.encode()) + 1 for content in TEXTS.values())
    pack = ["pack", str(tmp_path / "out"), "--to", str(tmp_path / "packed"), "--sequence-length"]
    capsys.readouterr()
    assert main([*pack, str(tokens - 1)]) == 2
    assert f"--sequence-length: {tokens - 1} leaves one sample of {tokens:,} tokens, and" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()
    assert main([*pack, str(tokens - 2)]) == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert main(["inspect", str(tmp_path / "job.yaml")]) == 0


def test_what_is_no_folder_of_whole_token_files_is_not_packed(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refusal() -> str:
        assert main(["pack", str(out), "--to", str(tmp_path / "packed"), "--sequence-length", "8"]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "has no TOKENS.json; make it with capstan data tokenize" in refusal()
    assert main(["tokenize", str(text), "--to", str(out), "--bytes"]) == 0
    whole = (out / "tokens-00000.bin").read_bytes()
    (out / "tokens-00000.bin").write_bytes(whole[:-2])
    assert "is not there with all its" in refusal()
    (out / "tokens-00000.bin").write_bytes(whole[:-2] + b"\1\0")
    assert "file 0 of the tokens: does not end with the end of text, 256" in refusal()
    (out / MANIFEST).write_text('{"version": 2}')
    assert "TOKENS.json: version: Input should be 1" in refusal()


MANIFESTS = {
    "a job": {"kind": "TrainingJob", "spec": {"data": {"digits": {}}, "model": {}}},
    "a Benchmark": {"kind": "Benchmark", "spec": {"job": {"data": {"digits": {}}}}},
    "a data section": {"data": {"digits": {}}},
    "what is in one": {"digits": {}},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_data_of_a_manifest_is_looked_at(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim = {"kind": "PersistentVolumeClaim", "spec": {"accessModes": ["ReadWriteMany"]}}
    (tmp_path / "x.yaml").write_text(f"{json.dumps(claim)}\n---\n{json.dumps(MANIFESTS[name])}\n")
    assert main(["inspect", str(tmp_path / "x.yaml")]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "data         1,797 images of 8 x 8 x 1, 10 classes",
        "looked at    all",
    ]


def test_bad_samples_are_named_and_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = np.ones((30, 2), np.float32)
    inputs[[4, 7]] = np.inf
    np.savez(tmp_path / "x.npz", inputs=inputs, labels=np.arange(30) % 2)
    (tmp_path / "x.yaml").write_text("arrays: {path: /data/x.npz}")
    volume = ["--volume", f"/data={tmp_path}"]
    assert main(["inspect", str(tmp_path / "x.yaml"), *volume]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "bad: sample 4 holds a NaN or an infinity",
        "bad: sample 7 holds a NaN or an infinity",
    ]
    assert main(["inspect", str(tmp_path / "x.yaml")]) == 78
    assert "spec.data.arrays.path: /data/x.npz does not exist in the pod" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "is no YAML: while parsing"),
        ("kind: Service\nspec: {ports: []}", "has no data; give a TrainingJob, or its data section"),
        ("digits: {}\ntext: {path: /x, sequenceLength: 4}", "data: got digits, text: set exactly one of digits"),
        ("images: {path: ftp://x, size: 8}", "data.images: path: ftp://x is neither a path in the pod nor"),
        (
            "tokens: {path: /x, dtype: int8, vocabulary: 9, sequenceLength: 1}",
            "data.tokens.dtype: 'int8' is refused: input should be 'uint16' or 'uint32'; "
            "data.tokens.sequenceLength: 1 is refused: input should be greater than or equal to 2\n",
        ),
        (
            "images: {pth: /x, size: 8}",
            "data.images.path: is not there, and must be; "
            "data.images.pth: there is no such field; correct its name, or remove it\n",
        ),
    ],
)
def test_manifests_without_data_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str
) -> None:
    (tmp_path / "x.yaml").write_text(content)
    assert main(["inspect", str(tmp_path / "x.yaml")]) == 2
    assert says in capsys.readouterr().err
