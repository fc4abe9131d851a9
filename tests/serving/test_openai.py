"""Completions: the official client, streams, stops, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import numpy as np
import openai
import orjson
import pytest

from capstan_runtime.contract.serving import Cache, CircuitBreaker, Guards, Queue
from capstan_runtime.errors import ConfigError
from capstan_runtime.serving.app import make_app
from capstan_runtime.serving.text import Text
from tests.serving.asgi import Client, decoder_app, metric, running
from tests.serving.conftest import Serve
from tests.serving.models import ROOT, NumpyDecoder, serve_config


def client_of(url: str, root: str = "/v1") -> openai.OpenAI:
    return openai.OpenAI(base_url=url + root, api_key="none", max_retries=0, timeout=20)


def events(body: bytes) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.mark.parametrize("root", ["/v1", "/openai/v1"])
def test_the_official_client_gets_a_completion_whole_and_streamed(serve: Serve, root: str) -> None:
    client = client_of(serve(decoder_app()), root)
    assert [model.id for model in client.models.list()] == ["digits"]
    assert client.models.retrieve("digits").owned_by == "capstan"
    asked: dict[str, Any] = {"model": "digits", "prompt": "a", "max_tokens": 5, "temperature": 0}
    whole = client.completions.create(**asked, logprobs=2)
    choice = whole.choices[0]
    assert (choice.text, choice.finish_reason, whole.system_fingerprint) == ("bcdef", "length", ROOT)
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (1, 5, 6)
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == list("bcdef")
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4]
    tops = choice.logprobs.top_logprobs
    assert tops is not None
    assert [max(top, key=lambda name: top[name]) for top in tops] == list("bcdef")
    assert all(len(top) == 2 for top in tops)
    chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "bcdef"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_the_official_client_sees_its_own_kinds_of_errors(serve: Serve) -> None:
    client = client_of(serve(decoder_app()))
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="other", prompt="a")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 64") as told:
        client.completions.create(model="digits", prompt="a" * 60, max_tokens=9)
    assert told.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="digits", messages=[{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "one completion"),
        ({"best_of": 3}, "one completion"),
        ({"echo": True}, "echo: is not supported"),
        ({"suffix": "x"}, "suffix: is not supported"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias: is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty: is not supported"),
        ({"frequency_penalty": -0.5}, "frequency_penalty: is not supported"),
        ({"temperature": 2.5}, "temperature: 2.5 is outside 0 to 2"),
        ({"temperature": -1}, "temperature: -1 is outside"),
        ({"top_p": 0}, "top_p: 0 is outside"),
        ({"max_tokens": 0}, "max_tokens: 0 is below 1"),
        ({"max_tokens": 1 << 70}, "not a completion|maximum context"),
        ({"logprobs": 6}, "logprobs: 6 is outside 0 to 5"),
        ({"prompt": ""}, "prompt: is empty"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": [256]}, "outside 0 to 255"),
        ({"prompt": [-1]}, "outside 0 to 255"),
        ({"prompt": ["a", "b"]}, "2 prompts in one request"),
        ({"prompt": {"text": "a"}}, "must be a text or a list of token ids"),
        ({"prompt": [1, "a"]}, "must be a text or a list of token ids"),
        ({"prompt": [1.5]}, "must be a text or a list of token ids"),
        ({"stop": ["a"] * 5}, "stop: send up to 4"),
        ({"stop": [""]}, "stop: send up to 4"),
        ({"seed": "x"}, "not a completion"),
    ],
)
async def test_what_would_change_the_answer_and_is_not_done_is_refused(fields: dict[str, Any], message: str) -> None:
    async with running(decoder_app()) as client:
        body = json.dumps({"model": "digits", "prompt": "a", **fields}).encode()
        response = await client.request("POST", "/v1/completions", body)
        assert response.status == 400
        assert response.json["error"]["type"] == "invalid_request_error"
        assert re.search(message, response.error), response.error


@pytest.mark.parametrize("prompt", ["a", ["a"], [97], [[97]]])
async def test_a_prompt_is_text_or_tokens_alone_or_in_a_list(prompt: Any) -> None:
    async with running(decoder_app()) as client:
        response = await client.complete(prompt=prompt, max_tokens=3, temperature=0)
        assert response.json["choices"][0]["text"] == "bcd"


async def test_a_model_without_text_speaks_in_tokens() -> None:
    async with running(decoder_app(model=NumpyDecoder(vocabulary=50, text=False))) as client:
        asked = {"prompt": [5], "max_tokens": 4, "temperature": 0, "stop_token_ids": [8], "logprobs": 1}
        choice = (await client.complete(**asked)).json["choices"][0]
        assert (choice["text"], choice["token_ids"], choice["finish_reason"]) == ("", [6, 7, 8], "stop")
        assert choice["logprobs"]["tokens"] == ["token_id:6", "token_id:7", "token_id:8"]
        streamed = events((await client.complete(**asked, stream=True)).body)
        assert streamed[-1] == "[DONE]"
        assert [token for event in streamed[:-1] for token in event["choices"][0]["token_ids"]] == [6, 7, 8]
        for refused in ({"prompt": "text"}, {"prompt": [5], "stop": "x"}):
            assert "not text" in (await client.complete(**refused)).error


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_stop_sequence_ends_the_text_before_itself(is_stream: bool) -> None:
    async with running(decoder_app()) as client:
        asked = {"prompt": "a", "max_tokens": 20, "temperature": 0, "stop": ["efx", "ef"], "stream": is_stream}
        response = await client.complete(**asked)
        if is_stream:
            choices = [event["choices"][0] for event in events(response.body)[:-1]]
        else:
            choices = response.json["choices"]
        assert "".join(choice["text"] for choice in choices) == "bcd"
        assert choices[-1]["finish_reason"] == "stop"


async def test_the_same_seed_gives_the_same_text_whatever_else_is_decoded() -> None:
    async with running(decoder_app(model=NumpyDecoder(slots=3))) as client:
        asked = {"prompt": "a", "max_tokens": 30, "temperature": 1.5, "seed": 11}
        alone = (await client.complete(**asked)).json["choices"][0]["text"]
        others = [client.complete(prompt=f"{number}", max_tokens=20 + number, seed=number) for number in range(7)]
        together, *_ = await asyncio.gather(client.complete(**asked), *others)
        assert together.json["choices"][0]["text"] == alone
        another = await client.complete(**{**asked, "seed": 12})
        assert another.json["choices"][0]["text"] != alone


async def test_more_sequences_than_slots_all_end_and_are_stepped_together() -> None:
    model = NumpyDecoder(slots=4)
    async with running(decoder_app(model=model)) as client:
        asks = [client.complete(prompt="a", max_tokens=3 + number, temperature=0) for number in range(12)]
        texts = [response.json["choices"][0]["text"] for response in await asyncio.gather(*asks)]
        assert texts == ["bcdefghijklmnopqrst"[: 3 + number] for number in range(12)]
        assert max(model.steps) == 4
        assert model.sequences == {}


async def test_a_client_that_goes_away_frees_its_slot() -> None:
    model = NumpyDecoder(slots=1, context=64)
    model.step_seconds = 0.02
    app = decoder_app(model=model)
    async with running(app) as client:
        leaver = Client(app)
        leaving = asyncio.create_task(leaver.complete(prompt="a", max_tokens=60, temperature=0, stream=True))
        while len(model.steps) < 5:
            await asyncio.sleep(0.005)
        leaver.gone.set()
        assert not (await leaving).is_complete
        response = await client.complete(prompt="x", max_tokens=2, temperature=0)
        assert response.json["choices"][0]["text"] == "yz"
        assert len(model.steps) < 50
        rendered = (await client.request("GET", "/metrics")).body
        assert metric(rendered, 'capstan_serving_requests_total{outcome="gone"}') == 1


async def test_a_decoder_that_fails_before_the_first_token_is_an_http_error_and_after_it_an_event() -> None:
    model = NumpyDecoder()
    lines: list[str] = []

    def fail(tokens: list[int]) -> None:
        if len(model.steps) >= 2 or tokens == [120]:
            raise RuntimeError("the device is on fire")

    async with running(decoder_app(model=model, log=lines.append)) as client:
        model.on_call = fail
        poisoned = await client.complete(prompt="x", max_tokens=2)
        assert (poisoned.status, poisoned.json["error"]["type"]) == (422, "invalid_request_error")
        streamed = await client.complete(prompt="a", max_tokens=9, temperature=0, stream=True)
        *texts, error = events(streamed.body)
        assert streamed.status == 200
        assert "".join(event["choices"][0]["text"] for event in texts) == "bc"
        assert error["error"]["type"] == "server_error"
        broken = await client.complete(prompt="a", max_tokens=9)
        assert (broken.status, broken.json["error"]["type"]) == (500, "server_error")
        assert all("the device is on fire" in line for line in lines)
        assert model.sequences == {}


async def test_a_decoder_that_keeps_failing_opens_the_circuit() -> None:
    model = NumpyDecoder()
    async with running(
        decoder_app(Guards(circuit_breaker=CircuitBreaker(failures=2)), model, log=lambda line: None)
    ) as client:
        model.on_call = lambda tokens: 1 / 0  # type: ignore[assignment]
        statuses = [(await client.complete(prompt="a")).status for _ in range(3)]
        assert statuses == [500, 500, 503]


async def test_a_stream_may_take_longer_than_the_deadline_but_not_between_two_tokens() -> None:
    model = NumpyDecoder()
    async with running(decoder_app(Guards(timeout_seconds=0.3), model)) as client:
        model.step_seconds = 0.05
        streamed = await client.complete(prompt="a", max_tokens=12, temperature=0, stream=True)
        assert events(streamed.body)[-1] == "[DONE]"
        whole = await client.complete(prompt="a", max_tokens=12, temperature=0)
        assert whole.status == 504
        model.step_seconds = 0.6
        stuck = await client.complete(prompt="a", max_tokens=12, temperature=0, stream=True)
        assert (stuck.status, stuck.is_complete) == (200, False)


async def test_a_full_queue_is_told_in_openais_form_with_retry_after() -> None:
    model = NumpyDecoder(slots=1)
    model.step_seconds = 0.01
    guards = Guards(queue=Queue(max_ongoing_requests=1, max_queued_requests=1))
    async with running(decoder_app(guards, model)) as client:
        asks = [client.complete(prompt="a", max_tokens=5) for _ in range(4)]
        responses = await asyncio.gather(*asks)
        assert sorted(response.status for response in responses) == [200, 200, 429, 429]
        refused = next(response for response in responses if response.status == 429)
        assert refused.json["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1


async def test_open_inference_tells_of_a_decoder_but_does_not_infer_with_it() -> None:
    async with running(decoder_app()) as client:
        assert (await client.request("GET", "/v2/models/digits/ready")).json == {"name": "digits", "ready": True}
        assert (await client.request("GET", "/v2/models/digits")).json["name"] == "digits"
        response = await client.infer([[0, 0, 0, 0]])
        assert (response.status, response.error) == (
            400,
            "the model continues sequences of tokens; use /v1/completions",
        )


@pytest.mark.parametrize(
    ("protocols", "guards", "message"),
    [
        (["OpenInference", "KServeV1"], Guards(), "protocols: OpenInference, KServeV1 do not fit"),
        (["OpenInference"], Guards(), "protocols: OpenInference do not fit"),
        (["OpenAI"], Guards(cache=Cache()), "guards.cache: is for classifiers"),
    ],
)
def test_a_configuration_that_does_not_fit_a_decoder_is_refused_at_the_start(
    protocols: list[str], guards: Guards, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_app(serve_config(guards, protocols), NumpyDecoder())


def test_text_is_utf8_and_half_characters_wait() -> None:
    text = Text([])
    assert [text.add(byte)[0] for byte in "é€".encode()] == ["", "é", "", "", "€"]
    text.add(0xC3)
    assert text.end() == "\ufffd"


async def test_bytes_of_a_character_share_its_offset() -> None:
    model = NumpyDecoder()
    model._logits = lambda sequence: _next_of("xé!".encode(), sequence)  # type: ignore[method-assign]
    async with running(decoder_app(model=model)) as client:
        body = orjson.dumps(
            {"model": "digits", "prompt": "a", "max_tokens": 4, "temperature": 0, "logprobs": 0, "stream": True}
        )
        streamed = events((await client.request("POST", "/v1/completions", body)).body)[:-1]
        choices = [event["choices"][0] for event in streamed]
        assert [choice["text"] for choice in choices] == ["x", "é", "!", ""]
        assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0], [1, 1], [2], []]
        assert choices[1]["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9"]


def _next_of(text: bytes, sequence: list[int]) -> Any:
    logits = np.zeros(256, np.float32)
    logits[text[len(sequence) - 1]] = 5.0
    return logits
