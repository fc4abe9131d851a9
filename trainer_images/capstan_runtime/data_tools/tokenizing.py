"""From text to token ids: the bytes as they are, or byte pairs (Sennrich et al., arXiv 1508.07909) over bytes, as in
GPT-2."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from capstan_runtime.data.spec import Array
from capstan_runtime.data_tools.token_folder import (
    TOKENIZER,
    TokenFolder,
    Unusable,
    begin,
    dtype_for,
    finish,
    write_files,
    write_whole,
)

END_OF_TEXT = "<|endoftext|>"
BYTE_VALUES = 256
_DOCUMENTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Text:
    """The documents: files, sorted by path."""

    root: Path
    paths: tuple[str, ...]
    """In `root`."""
    sizes: tuple[int, ...]

    def read(self, number: int) -> str:
        """Raises Unusable for what is no text."""
        path = self.root / self.paths[number]
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Unusable(f"{path}: byte {error.start} is not UTF-8; convert the file, or give --bytes") from error


def find_text(root: Path, pattern: str) -> Text:
    """Raises Unusable if there is none."""
    if root.is_file():
        return Text(root.parent, (root.name,), (root.stat().st_size,))
    if not root.is_dir():
        raise Unusable(f"TEXT: {root} is {'neither a file nor a folder' if root.exists() else 'not there'}; correct it")
    try:
        files = sorted(file for file in root.glob(pattern) if file.is_file())
    except (NotImplementedError, ValueError) as error:  # it is absolute, or no glob at all
        raise Unusable(
            f"--pattern: {pattern} is no glob of files below {root} ({error}); give one such as **/*.txt"
        ) from error
    if not files:
        raise Unusable(f"{root}: no file of it matches {pattern}; correct the path, or --pattern")
    return Text(
        root, tuple(file.relative_to(root).as_posix() for file in files), tuple(file.stat().st_size for file in files)
    )


def shards_of(sizes: Sequence[int], bytes_per_file: int) -> list[range]:
    """Numbers of the documents of each file: one begins when the one before it has `bytes_per_file`."""
    shards, first, size = [], 0, 0
    for number, each in enumerate(sizes):
        size += each
        if size >= bytes_per_file:
            shards.append(range(first, number + 1))
            first, size = number + 1, 0
    return [*shards, range(first, len(sizes))] if first < len(sizes) else shards


def tokenize(
    text: Text,
    folder: Path,
    *,
    vocabulary: int | None,
    tokenizer: Path | None,
    bytes_per_file: int,
    training_bytes: int,
    tell: Callable[[str], None],
) -> TokenFolder:
    """Writes `folder`: each document, then the end of text. With neither `vocabulary`, of a tokenizer to be trained on
    `training_bytes` of the text, nor `tokenizer`, a file, tokens are bytes.

    Equal text and settings give equal files; a folder that was left unfinished is gone on with. Raises Unusable,
    before anything is written.
    """
    _require_usable(text, vocabulary, tokenizer)
    plan: dict[str, object] = {
        "makes": "tokens of text",
        "text": _fingerprint(text),
        "bytesPerFile": bytes_per_file,
        "vocabulary": vocabulary,
        "trainingBytes": training_bytes if vocabulary is not None else None,
        "tokenizer": blake3(tokenizer.read_bytes()).hexdigest() if tokenizer is not None else None,
    }
    begin(folder, plan)
    coder = _coder(text, folder, vocabulary, tokenizer, training_bytes, tell)
    shards = shards_of(text.sizes, bytes_per_file)
    dtype = dtype_for(coder.vocabulary)
    files = write_files(folder, [_part(coder, text, shard) for shard in shards], dtype, tell)
    made = TokenFolder(
        dtype=dtype,
        vocabulary=coder.vocabulary,
        end_of_text=coder.end_of_text,
        documents=len(text.paths),
        files=files,
    )
    finish(folder, made)
    return made


def _require_usable(text: Text, vocabulary: int | None, tokenizer: Path | None) -> None:
    """Raises Unusable where a coder would: a folder that is begun must be one that can be finished."""
    if vocabulary is not None and vocabulary < BYTE_VALUES + 1:
        raise Unusable(f"--vocabulary: {vocabulary} is too few; each byte and the end of text are tokens: 257 or more")
    if tokenizer is not None:
        _coder_of(tokenizer)
    if vocabulary is not None or tokenizer is not None:
        for number in range(len(text.paths)):
            text.read(number)


@dataclass(frozen=True, slots=True)
class _Coder:
    vocabulary: int
    end_of_text: int
    encode: Callable[[Text, range], Iterator[Array]]
    """The tokens of these documents, without their ends."""


def _part(coder: _Coder, text: Text, shard: range) -> Callable[[], Iterator[Array]]:
    end = np.asarray([coder.end_of_text], np.uint32)

    def tokens() -> Iterator[Array]:
        for document in coder.encode(text, shard):
            yield document
            yield end

    return tokens


def _coder(
    text: Text,
    folder: Path,
    vocabulary: int | None,
    tokenizer: Path | None,
    training_bytes: int,
    tell: Callable[[str], None],
) -> _Coder:
    if vocabulary is None and tokenizer is None:
        return _Coder(BYTE_VALUES + 1, BYTE_VALUES, _bytes_of)
    path = folder / TOKENIZER
    if not path.is_file():
        if tokenizer is not None:
            write_whole(path, [tokenizer.read_bytes()])
        else:
            assert vocabulary is not None
            tell(f"training a tokenizer of {vocabulary:,} tokens")
            write_whole(path, [_train(text, vocabulary, training_bytes).to_str(pretty=True).encode()])
    return _coder_of(path)


def _coder_of(path: Path) -> _Coder:
    """Of a tokenizer.json. Raises Unusable."""
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise Unusable(f"--tokenizer: {path} cannot be read: {error.strerror}; give a tokenizer.json") from error
    except Exception as error:  # the library raises Exception itself
        raise Unusable(f"{path}: is no tokenizer.json: {' '.join(str(error).split())[:200]}") from error
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    if end_of_text is None:
        raise Unusable(f"{path}: has no token {END_OF_TEXT}, which stands between documents; add it to its tokens")

    def encode(text: Text, shard: range) -> Iterator[Array]:
        for start in range(shard.start, shard.stop, _DOCUMENTS_AT_ONCE):
            documents = [text.read(number) for number in range(start, min(start + _DOCUMENTS_AT_ONCE, shard.stop))]
            for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False):
                yield np.asarray(encoding.ids, np.uint32)

    return _Coder(tokenizer.get_vocab_size(with_added_tokens=True), end_of_text, encode)


def _bytes_of(text: Text, shard: range) -> Iterator[Array]:
    for number in shard:
        yield np.frombuffer((text.root / text.paths[number]).read_bytes(), np.uint8)


def _train(text: Text, vocabulary: int, training_bytes: int) -> Tokenizer:
    """On the documents that come first in a fixed order by chance, as many as have `training_bytes` together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # It makes room for all at once; and there is no pair of which more could be made.
        vocab_size=min(vocabulary, BYTE_VALUES + 1 + sum(text.sizes)),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    order = sorted(range(len(text.paths)), key=lambda number: blake3(text.paths[number].encode()).digest())
    before = itertools.accumulate((text.sizes[number] for number in order), initial=0)
    chosen = [number for number, size in zip(order, before, strict=False) if size < training_bytes]
    tokenizer.train_from_iterator((text.read(number)[:training_bytes] for number in chosen), trainer)
    return tokenizer


def _fingerprint(text: Text) -> str:
    """Of all of it: other text must not go on where this one was left."""
    digest = blake3(max_threads=blake3.AUTO)
    for path, size in zip(text.paths, text.sizes, strict=True):
        digest.update(f"{path}\0{size}\0".encode())
        if size:
            with (text.root / path).open("rb"):  # its error names the file, which that of the next line does not
                digest.update_mmap(text.root / path)
    return digest.hexdigest()
