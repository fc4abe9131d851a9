"""From documents to samples of one length: strung together, each document with its end, and cut."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capstan_runtime.data.fingerprint import fingerprint_of
from capstan_runtime.data.plan import Permutation
from capstan_runtime.data.spec import Array, Ids
from capstan_runtime.data_tools.token_folder import (
    MANIFEST,
    TokenFolder,
    Unusable,
    begin,
    dtype_for,
    finish,
    mapped,
    read_folder,
    write_files,
)

_SHUFFLE = 0xD0C5
"""Keeps the order of documents apart from those that training makes of the same seed."""


@dataclass(frozen=True, slots=True)
class Documents:
    """Stretches of token files, each with its end of text."""

    files: Sequence[Array]
    of_file: Ids
    """[n] which file each is in."""
    starts: Ids
    """[n] where it begins there."""
    lengths: Ids
    """[n] its tokens, the end included."""


@dataclass(frozen=True, slots=True)
class Source:
    """Token files and what is to be known of them."""

    paths: tuple[Path, ...]
    dtype: str
    vocabulary: int
    end_of_text: int
    fingerprint: str


def find_source(folder: Path) -> Source:
    """The files that TOKENS.json of `folder` names. Raises Unusable."""
    made = read_folder(folder)
    if made is None:
        raise Unusable(f"{folder}: has no {MANIFEST}; make it with capstan data tokenize")
    if made.sequence_length is not None:
        raise Unusable(f"{folder}: is packed, and its documents are cut; give what it was packed from")
    paths = tuple(folder / file.name for file in made.files)
    for path, file in zip(paths, made.files, strict=True):
        if not path.is_file() or len(mapped(path, made.dtype)) != file.tokens:
            raise Unusable(f"{path}: is not there with all its {file.tokens:,} tokens; write the folder again")
    facts = [(file.tokens, file.digest) for file in made.files]
    return Source(paths, made.dtype, made.vocabulary, made.end_of_text, fingerprint_of(facts, made.end_of_text))


def pack(
    source: Source,
    folder: Path,
    *,
    sequence_length: int,
    samples_per_file: int,
    seed: int | None,
    tell: Callable[[str], None],
) -> TokenFolder:
    """Writes `folder`: all documents of `source`, in an order by `seed` or, with None, as they are; none of them loses
    a token. The end of the last file is filled with ends of text.

    Every file has samples x `sequence_length` + 1 tokens, and begins with the last token of the file before it: so
    each token but the first is predicted once. Equal arguments give equal bytes. Raises Unusable.
    """
    documents = find_documents([mapped(path, source.dtype) for path in source.paths], source.end_of_text)
    if not len(documents.lengths):
        raise Unusable(f"{source.paths[0].parent if source.paths else folder}: holds no document; give some text")
    stream = Stream(documents, _order(len(documents.lengths), seed))
    if stream.tokens - 1 <= sequence_length:
        raise Unusable(
            f"--sequence-length: {sequence_length} leaves one sample of {stream.tokens:,} tokens, and a job needs one "
            "to train on and one to validate with; give a smaller one, or more text"
        )
    begin(
        folder,
        {
            "makes": "samples of tokens",
            "tokens": source.fingerprint,
            "sequenceLength": sequence_length,
            "samplesPerFile": samples_per_file,
            "seed": seed,
        },
    )
    dtype = dtype_for(source.vocabulary)
    parts = [
        _part(stream, first, count, source.end_of_text)
        for first, count in cuts(stream.tokens, sequence_length, samples_per_file)
    ]
    made = TokenFolder(
        dtype=dtype,
        vocabulary=source.vocabulary,
        end_of_text=source.end_of_text,
        documents=len(documents.lengths),
        sequence_length=sequence_length,
        files=write_files(folder, parts, dtype, tell),
    )
    finish(folder, made)
    return made


def find_documents(files: Sequence[Array], end_of_text: int) -> Documents:
    """Each ends with an end of text, and so does every file. Raises Unusable."""
    of_file, starts, lengths = [], [], []
    for number, tokens in enumerate(files):
        ends = np.flatnonzero(tokens == end_of_text).astype(np.int64) + 1
        if len(tokens) and (not len(ends) or ends[-1] < len(tokens)):
            raise Unusable(
                f"file {number} of the tokens: does not end with the end of text, {end_of_text}; make it again"
            )
        begins = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])
        of_file.append(np.full(len(ends), number, np.int64))
        starts.append(begins)
        lengths.append(ends - begins)
    none = np.zeros(0, np.int64)
    return Documents(files, *(np.concatenate([none, *each]) for each in (of_file, starts, lengths)))


class Stream:
    """All documents one after another, readable from anywhere."""

    def __init__(self, documents: Documents, order: Ids) -> None:
        self._documents = documents
        self._order = order
        lengths = documents.lengths[order]
        self._ends = np.cumsum(lengths)
        self.tokens = int(self._ends[-1])

    def read(self, first: int, count: int) -> Iterator[Array]:
        """Tokens [first, first + count), document by document."""
        at = int(np.searchsorted(self._ends, first, side="right"))
        while count > 0 and at < len(self._order):
            document = self._order[at]
            length = int(self._documents.lengths[document])
            skip = first - (int(self._ends[at]) - length)
            taken = min(length - skip, count)
            start = int(self._documents.starts[document]) + skip
            yield self._documents.files[self._documents.of_file[document]][start : start + taken]
            first, count, at = first + taken, count - taken, at + 1


def cuts(tokens: int, sequence_length: int, samples_per_file: int) -> list[tuple[int, int]]:
    """(first token, tokens) of each file, the filling of the last one included."""
    samples = max(1, -(-(tokens - 1) // sequence_length))
    return [
        (first * sequence_length, min(samples_per_file, samples - first) * sequence_length + 1)
        for first in range(0, samples, samples_per_file)
    ]


def _part(stream: Stream, first: int, count: int, end_of_text: int) -> Callable[[], Iterator[Array]]:
    def tokens() -> Iterator[Array]:
        yield from stream.read(first, count)
        missing = first + count - stream.tokens
        if missing > 0:
            yield np.full(missing, end_of_text, np.uint32)

    return tokens


def _order(documents: int, seed: int | None) -> Ids:
    numbers = np.arange(documents, dtype=np.int64)
    return numbers if seed is None else Permutation(documents, seed, _SHUFFLE)(numbers)
