"""The HTTP scorer against a real server: what goes over the wire, what is retried, and what an error says."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import ValidationError
from scoring_server import Server, answer, serving
from typer.testing import CliRunner

from raydense.cli import app
from raydense.config import Config
from raydense.rewards.http import HttpScorer

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
PROMPTS = ["a", "bb", "ccc", "ä cat", ""]


def status(code: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: answer(handler, b"busy\nnow", code, **headers)


def content(value: Any) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: answer(handler, value)


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


def make(server: Server, **options: Any) -> HttpScorer:
    return HttpScorer("served", url=server.url, **{"retries": 2, "backoff_s": 0.01, **options})


def test_scores_come_back_in_order_and_in_batches(server: Server) -> None:
    scores = make(server, batch_size=2).score(IMAGES, PROMPTS)
    expected = [float(image.mean()) + len(prompt) for image, prompt in zip(IMAGES, PROMPTS, strict=True)]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert [body["prompts"] for _, body in server.requests] == [["a", "bb"], ["ccc", "ä cat"], [""]]
    headers, body = server.requests[0]
    assert headers["Content-Type"] == "application/json"
    assert set(body) == {"prompts", "images"}
    picture = Image.open(io.BytesIO(base64.b64decode(body["images"][0])))
    assert picture.format == "PNG"
    assert np.array_equal(np.asarray(picture), IMAGES[0])


@pytest.mark.parametrize("failure", [status(503), status(500), status(429, **{"Retry-After": "3600"}), hang])
def test_what_may_pass_is_tried_again(server: Server, failure: Any) -> None:
    server.failures = [failure]
    started = time.monotonic()
    assert len(make(server, timeout_s=1.5).score(IMAGES[:1], ["a"])) == 1
    assert len(server.requests) == 2
    assert time.monotonic() - started < 5


def test_retries_are_bounded_and_the_status_is_told(server: Server) -> None:
    server.failures = [status(503)] * 10
    with pytest.raises(
        RuntimeError, match=r"^http://127\.0\.0\.1:\d+/score answers 503 Service Unavailable: busy now$"
    ):
        make(server).score(IMAGES[:1], ["a"])
    assert len(server.requests) == 3


def test_what_another_try_would_not_change_is_not_tried_again(server: Server) -> None:
    server.failures = [status(401)]
    with pytest.raises(RuntimeError, match="answers 401 Unauthorized: busy now"):
        make(server).score(IMAGES[:1], ["a"])
    server.failures = [status(302, Location="http://127.0.0.1:1/elsewhere")]  # a token must not follow it
    with pytest.raises(RuntimeError, match="answers 302 Found"):
        make(server).score(IMAGES[:1], ["a"])
    assert len(server.requests) == 2


def test_waits_grow_between_tries(server: Server) -> None:
    server.failures = [status(503)] * 3
    started = time.monotonic()
    make(server, retries=3, backoff_s=0.1).score(IMAGES[:1], ["a"])
    assert 0.2 + 0.4 <= time.monotonic() - started < 5  # at once, then 2 x 0.1 s, then 4 x 0.1 s


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0], r"answers \[1\.0\]; expected a list of 2 numbers"),
        ({"scores": [1, 2]}, "expected a list of 2 numbers"),
        (["1", "2"], "expected a list of 2 numbers"),
        ([True, False], "expected a list of 2 numbers"),
        (b"<html>", "answers no JSON: <html>"),
        (["x" * 1000], "…; expected a list of 2 numbers"),
    ],
)
def test_an_answer_that_is_no_list_of_scores(server: Server, given: Any, said: str) -> None:
    server.failures = [content(given)]
    with pytest.raises(RuntimeError, match=said) as caught:
        make(server).score(IMAGES[:2], PROMPTS[:2])
    assert len(str(caught.value)) < 400


def test_nobody_there(server: Server) -> None:
    scorer = HttpScorer("served", url="http://127.0.0.1:1/score", retries=1, backoff_s=0.01)
    with pytest.raises(RuntimeError, match=r"^http://127\.0\.0\.1:1/score does not answer \(.*refused") as caught:
        scorer.score(IMAGES[:1], ["a"])
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


def test_the_token_comes_from_the_environment_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="scorer served: token_env=JUDGE_TOKEN is not set in the environment"):
        make(server, token_env="JUDGE_TOKEN")
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    scorer = make(server, token_env="JUDGE_TOKEN")
    scorer.score(IMAGES[:1], ["a"])
    assert server.requests[0][0]["Authorization"] == "Bearer s3cret"
    server.failures = [status(403)]
    with pytest.raises(RuntimeError) as caught:
        scorer.score(IMAGES[:1], ["a"])
    assert "s3cret" not in str(caught.value)


def test_no_password_of_the_users_is_sent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    make(server).score(IMAGES[:1], ["a"])
    assert "Authorization" not in server.requests[0][0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "file:///etc/passwd"}, "expected http://host/path"),
        ({"url": "http://me:s3cret@host/score"}, "url holds a user name or password"),
        ({"url": "ftp://me:s3cret@host/score"}, "url holds a user name or password"),
        ({"url": "me:s3cret@host/score"}, "url holds a user name or password"),
        ({"url": "http://s3cret@/score"}, "url holds a user name or password"),
        ({"url": "http://host/score", "token_env": "JUDGE_TOKEN"}, "would carry the token of token_env unencrypted"),
        ({"url": "http://host/score", "token": "x"}, "token"),
    ],
)
def test_bad_settings(small_config: Callable[..., Config], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        small_config(reward={"scorer": {"kind": "http", "name": "served", **settings}})
    assert "s3cret" not in "".join(error["msg"] for error in caught.value.errors())


def test_a_run_is_judged_by_a_server(small_values: dict[str, Any], server: Server, tmp_path: Path) -> None:
    scorer = {"kind": "http", "name": "served", "url": server.url, "batch_size": 8}
    values = {**small_values, "reward": {"scorer": scorer}, "stage": {"count": 1, "groups": 4, "steps": 1}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    server.failures = [status(503)]  # a moment's outage in the middle of a run costs a retry
    result = CliRunner().invoke(
        app, ["train", str(tmp_path / "config.yaml"), "--local", "--out", str(tmp_path / "run")]
    )
    assert result.exit_code == 0, result.output
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    (reward,) = [row["reward/mean"] for row in rows if row["kind"] == "stage"]
    assert 0 < reward < 300
