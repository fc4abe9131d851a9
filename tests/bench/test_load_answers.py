"""Where an answer of HTTP/1.1 ends: however it is cut into pieces, and whatever else comes."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capstan_runtime.bench.load.answer import LONGEST_HEAD, AnswerReader, BadAnswer

ANSWERS = {
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello": (200, 5, True),
    b"HTTP/1.1 204 None\r\n\r\n": (204, 0, True),
    b"HTTP/1.1 304 Same\r\ncontent-length: 9\r\n\r\n": (304, 0, True),
    b"HTTP/1.1 500 Oh no\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n": (500, 0, False),
    b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx": (200, 1, False),
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx": (200, 1, True),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\ncontent-length: 2\r\n\r\nok": (201, 2, True),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n"
    b"3\r\nabc\r\nA;n=v\r\n0123456789\r\n0\r\n\r\n": (200, 13, True),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\ntrailer: x\r\n\r\n": (200, 0, True),
}
BAD = (
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 2xx OK\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxy",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnine\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxy\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nmore",
    b"HTTP/1.1 200 OK\r\nx: " + b"y" * LONGEST_HEAD,
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1" * 10_000,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    return [data[begin:end] for begin, end in pairwise(at) if begin < end]


@given(answer=st.sampled_from(list(ANSWERS)), cuts=st.lists(st.integers(0, 10_000), max_size=12))
@settings(max_examples=300)
def test_an_answer_ends_at_its_last_byte_however_it_is_cut(answer: bytes, cuts: list[int]) -> None:
    reader = AnswerReader()
    for _ in range(2):  # a second answer over the same connection
        *first, last = [reader.feed(piece) for piece in pieces(answer, cuts)]
        assert (any(first), last) == (False, True)
        assert (reader.status, reader.size, reader.is_reusable) == ANSWERS[answer]
        reader.restart()


def test_an_answer_without_a_length_ends_with_its_connection_and_a_cut_one_does_not() -> None:
    reader = AnswerReader()
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nall that")
    assert not reader.feed(b" comes")
    assert reader.end()
    assert (reader.status, reader.size, reader.is_reusable) == (200, 14, False)
    for cut in (b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n1234"):
        reader.restart()
        assert not reader.feed(cut)
        assert not reader.end()


@pytest.mark.parametrize("data", BAD, ids=lambda data: data[:60].decode())
def test_what_is_no_answer_is_called_so(data: bytes) -> None:
    with pytest.raises(BadAnswer):
        AnswerReader().feed(data)


@given(
    head=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]),
    rest=st.lists(
        st.binary(max_size=40) | st.sampled_from([b"\r\n", b"0", b"a\r\n", b"content-length: ", b"\r\n\r\n"])
    ),
)
@example(head=b"HTTP/1.1 200 OK\r\n", rest=[b"content-length: \xb2\r\n\r\n"])
@settings(max_examples=500)
def test_no_bytes_at_all_raise_anything_else(head: bytes, rest: list[bytes]) -> None:
    reader = AnswerReader()
    try:
        for piece in (head, *rest):
            if reader.feed(piece):
                reader.restart()
    except BadAnswer:
        pass
