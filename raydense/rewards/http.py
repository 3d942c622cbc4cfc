"""A scorer that is served elsewhere: pictures and prompts go out as JSON, a list of scores comes back.

POST {"prompts": ["a cat", …], "images": ["<base64 of a PNG>", …]}   →   200, [0.71, …]

N prompts, N pictures, N finite numbers in the same order; nothing else, and no pickle, is on the wire. Each request is
on its own, so that a server may be replicated behind one address. Its scores must be a function of picture and prompt
alone: the promise that a resumed run gives the same bytes is as good as that.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
import requests
from numpy.typing import NDArray
from PIL import Image
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from raydense.core.messages import one_line
from raydense.core.types import FloatArray

RETRIED = (408, 425, 429, 500, 502, 503, 504)  # statuses that another try may change
MAX_WAIT_S = 30.0  # between two tries
SHOWN = 200  # characters of an answer, in an error


class HttpScorer:
    """A client of one URL; connections are kept open between requests.

    Args:
        name: in metrics.
        url: http:// or https://.
        batch_size: pictures a request.
        timeout_s: without an answer, after which a try has failed.
        retries: tries after the first, of what may pass: no connection, no answer in time, a status in `RETRIED`.
        backoff_s: before the second retry; it doubles with each one, up to `MAX_WAIT_S`; the first one is immediate.
        token_env: environment variable that holds a bearer token, read here, where the scorer runs; None: no token.

    Raises: ValueError if the variable is not set.
    """

    def __init__(
        self,
        name: str,
        *,
        url: str,
        batch_size: int = 16,
        timeout_s: float = 60.0,
        retries: int = 4,
        backoff_s: float = 0.5,
        token_env: str | None = None,
    ) -> None:
        self.name, self._url, self._batch_size, self._timeout_s = name, url, batch_size, timeout_s
        headers = {"Accept": "application/json"}
        if token_env is not None:
            headers["Authorization"] = f"Bearer {read_token(name, token_env)}"
        self._session = requests.Session()
        self._session.auth = _Headers(headers)
        policy = Retry(
            total=retries,
            backoff_factor=backoff_s,
            backoff_max=MAX_WAIT_S,
            status_forcelist=RETRIED,
            allowed_methods=None,  # scoring twice does no harm
            respect_retry_after_header=False,  # it could ask for hours
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=policy))

    def score(self, images: NDArray[np.uint8], prompts: Sequence[str]) -> FloatArray:
        """images uint8 [N, h, w, 3] and N prompts → float32 [N].

        Raises: RuntimeError in one line, naming the URL, once the retries are used up or the answer is no N numbers.
        """
        size = self._batch_size
        starts = range(0, len(images), size)
        return np.concatenate([self._ask(images[i : i + size], list(prompts[i : i + size])) for i in starts])

    def _ask(self, images: NDArray[np.uint8], prompts: list[str]) -> FloatArray:
        body = {"prompts": prompts, "images": [encode_png(image) for image in images]}
        try:
            answer = self._session.post(self._url, json=body, timeout=self._timeout_s, allow_redirects=False)
        except requests.RequestException as error:
            raise RuntimeError(f"{self._url} does not answer ({_cause(error)})") from None
        if answer.status_code != requests.codes.ok:
            raise RuntimeError(f"{self._url} answers {answer.status_code} {answer.reason}: {_start(answer.text)}")
        try:
            scores = answer.json()
        except ValueError:
            raise RuntimeError(f"{self._url} answers no JSON: {_start(answer.text)}") from None
        numbers = isinstance(scores, list) and all(type(score) in (int, float) for score in scores)
        if not numbers or len(scores) != len(images):
            raise RuntimeError(f"{self._url} answers {_start(answer.text)}; expected a list of {len(images)} numbers")
        return np.array(scores, dtype=np.float32)


class _Headers(requests.auth.AuthBase):
    """Sets headers last, in the place of an authorisation that `requests` would else look up in the user's ~/.netrc."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._headers)
        return request


def read_token(name: str, variable: str) -> str:
    """The bearer token. Raises: ValueError if the environment has none."""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ValueError(
            f"scorer {name}: token_env={variable} is not set in the environment; export it and start again"
        )
    return token


def encode_png(image: NDArray[np.uint8]) -> str:
    """uint8 [h, w, 3] → base64 of its PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _cause(error: BaseException) -> str:
    """The innermost reason, without addresses of objects."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return one_line(error)


def _start(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN else f"{flat[:SHOWN]}…"
