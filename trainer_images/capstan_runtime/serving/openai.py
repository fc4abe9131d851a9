"""OpenAI's completions: requests, answers, chunks and errors in its form."""

import os
import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson

from capstan_runtime.serving.generation import Token, Wish
from capstan_runtime.serving.predictor import Sampling
from capstan_runtime.serving.refusal import Outcome, Refusal
from capstan_runtime.serving.served import Served
from capstan_runtime.serving.text import shown

_MOST_STOPS = 4
_MOST_STOP_BYTES = 256
_MOST_LOGPROBS = 5
_DEFAULT_TOKENS = 16
DONE = b"data: [DONE]\n\n"


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Completion(msgspec.Struct):
    model: str
    prompt: msgspec.Raw
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


_COMPLETION = msgspec.json.Decoder(_Completion)
_PROMPTS: tuple[Any, ...] = tuple(msgspec.json.Decoder(kind) for kind in (str, list[int], list[str], list[list[int]]))


@dataclass(frozen=True, slots=True)
class Ask:
    wish: Wish
    stops: tuple[bytes, ...]
    stop_ids: frozenset[int]
    is_stream: bool
    wants_usage: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a continuation: text, and the tokens it came of."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str | None = None


class Completions:
    """Of one model. `context` is the most tokens of a sequence, prompt included."""

    def __init__(self, served: Served, context: int) -> None:
        self._served = served
        self._context = context
        self._is_text = served.signature.text
        self._created = int(time.time())

    def model(self) -> dict[str, Any]:
        return {
            "id": self._served.model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "capstan",
            "root": self._served.model.root,
            "max_model_len": self._context,
        }

    def read(self, body: bytes) -> Ask:
        """Raises Refusal 400, or 404 for another model."""
        try:
            request = _COMPLETION.decode(body)
        except RecursionError:
            raise Refusal(400, "the request is nested too deeply") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"the request is not a completion: {error}") from None
        if request.model != self._served.model.name:
            raise Refusal(404, f"The model {request.model[:80]!r} does not exist; ask for {self._served.model.name!r}")
        _refuse_what_is_not_done(request)
        prompt = self._prompt(request.prompt)
        most = _DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        if most < 1:
            raise Refusal(400, f"max_tokens: {most} is below 1")
        if len(prompt) + most > self._context:
            raise Refusal(
                400,
                f"This model's maximum context length is {self._context} tokens. However, you requested "
                f"{len(prompt) + most} tokens ({len(prompt)} in the prompt, {most} in the completion).",
            )
        wish = Wish(prompt, most, _sampling(request), request.logprobs)
        options = request.stream_options
        return Ask(
            wish,
            self._stops(request.stop),
            frozenset(request.stop_token_ids or ()),
            bool(request.stream),
            options is not None and options.include_usage,
        )

    def _prompt(self, raw: msgspec.Raw) -> np.ndarray[Any, np.dtype[np.int32]]:
        prompt = _decoded_prompt(raw)
        if isinstance(prompt, str):
            if not self._is_text:
                raise Refusal(400, "prompt: the model knows tokens, not text; send a list of token ids")
            prompt = list(prompt.encode())
        vocabulary = self._served.signature.outputs
        if not prompt:
            raise Refusal(400, "prompt: is empty; send at least one token")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise Refusal(400, f"prompt: a token is outside 0 to {vocabulary - 1}")
        return np.array(prompt, np.int32)

    def _stops(self, stop: str | list[str] | None) -> tuple[bytes, ...]:
        stops = [stop] if isinstance(stop, str) else (stop or [])
        if stops and not self._is_text:
            raise Refusal(400, "stop: the model knows tokens, not text; send stop_token_ids")
        encoded = tuple(text.encode() for text in stops)
        if len(encoded) > _MOST_STOPS or any(not 1 <= len(text) <= _MOST_STOP_BYTES for text in encoded):
            raise Refusal(400, f"stop: send up to {_MOST_STOPS} texts of 1 to {_MOST_STOP_BYTES} bytes")
        return encoded

    def answer(self, ask: Ask, completion_id: str, piece: Piece) -> bytes:
        document = {
            **self._head(completion_id),
            "choices": [self._choice(ask, piece, 0)],
            "usage": _usage(ask, len(piece.tokens)),
        }
        return orjson.dumps(document)

    def chunk(self, ask: Ask, completion_id: str, piece: Piece, text_offset: int) -> bytes:
        document = {**self._head(completion_id), "choices": [self._choice(ask, piece, text_offset)]}
        if ask.wants_usage:
            document["usage"] = None
        return _event(document)

    def usage_chunk(self, ask: Ask, completion_id: str, tokens: int) -> bytes:
        return _event({**self._head(completion_id), "choices": [], "usage": _usage(ask, tokens)})

    def _head(self, completion_id: str) -> dict[str, Any]:
        return {
            "id": completion_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._served.model.name,
            "system_fingerprint": self._served.model.root,
        }

    def _choice(self, ask: Ask, piece: Piece, text_offset: int) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "text": piece.text,
            "logprobs": None if ask.wish.logprobs is None else self._logprobs(piece, text_offset),
            "finish_reason": piece.finish_reason,
        }
        if not self._is_text:
            choice["token_ids"] = [token.id for token in piece.tokens]
        return choice

    def _logprobs(self, piece: Piece, text_offset: int) -> dict[str, Any]:
        names = [self._name(token.id) for token in piece.tokens]
        return {
            "tokens": names,
            "token_logprobs": [token.logprob for token in piece.tokens],
            "top_logprobs": [
                {self._name(other): logprob for other, logprob in token.likeliest} for token in piece.tokens
            ],
            "text_offset": _offsets(piece.tokens, text_offset, self._is_text),
        }

    def _name(self, token: int) -> str:
        return shown(token) if self._is_text else f"token_id:{token}"


def error_body(refusal: Refusal, request_id: str) -> bytes:
    return orjson.dumps(_error(refusal))


def error_event(refusal: Refusal) -> bytes:
    """For a stream that has begun."""
    return _event(_error(refusal))


def _error(refusal: Refusal) -> dict[str, Any]:
    kinds = {Outcome.UNAUTHORIZED: "authentication_error", Outcome.SHED: "rate_limit_error"}
    kind = kinds.get(refusal.outcome, "invalid_request_error" if refusal.status < 500 else "server_error")
    codes = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
    return {
        "error": {"message": refusal.message, "type": kind, "param": None, "code": codes.get(refusal.status)},
    }


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def _usage(ask: Ask, tokens: int) -> dict[str, int]:
    prompt = len(ask.wish.prompt)
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _offsets(tokens: tuple[Token, ...], first: int, is_text: bool) -> list[int]:
    """Of each token in the text, in characters: a byte that continues one has that one's."""
    offsets: list[int] = []
    for token in tokens:
        begins = not is_text or token.id & 0xC0 != 0x80
        offsets.append(first if begins or not offsets else offsets[-1])
        first += begins and is_text
    return offsets


def _decoded_prompt(raw: msgspec.Raw) -> str | list[int]:
    for decoder in _PROMPTS:
        try:
            prompt = decoder.decode(raw)
        except msgspec.ValidationError:
            continue
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refusal(400, f"prompt: {error}") from None
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise Refusal(400, f"prompt: {len(prompt)} prompts in one request; send one at a time")
            one: str | list[int] = prompt[0]
            return one
        return prompt if isinstance(prompt, str) else list(prompt)
    raise Refusal(400, "prompt: must be a text or a list of token ids")


def _sampling(request: _Completion) -> Sampling:
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    if not 0.0 <= temperature <= 2.0:
        raise Refusal(400, f"temperature: {temperature:g} is outside 0 to 2")
    if not 0.0 < top_p <= 1.0:
        raise Refusal(400, f"top_p: {top_p:g} is outside 0 (not included) to 1")
    seed = int.from_bytes(os.urandom(8), "little") if request.seed is None else request.seed % 2**64
    return Sampling(temperature, top_p, seed)


def _refuse_what_is_not_done(request: _Completion) -> None:
    """What would change the answer is refused, never ignored."""
    if request.n not in (None, 1) or request.best_of not in (None, 1):
        raise Refusal(400, "n, best_of: one completion for each request; ask again for another")
    if request.logprobs is not None and not 0 <= request.logprobs <= _MOST_LOGPROBS:
        raise Refusal(400, f"logprobs: {request.logprobs} is outside 0 to {_MOST_LOGPROBS}")
    given = {
        "echo": request.echo,
        "suffix": request.suffix,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "logit_bias": request.logit_bias,
    }
    for name, value in given.items():
        if value:
            raise Refusal(400, f"{name}: is not supported; leave it out")
