"""Asking a vision-language model about pictures: over an OpenAI-compatible endpoint, or with a local model.

Both answer with what is read in the reply, or with `Failed` and the reason. A reply that was cut off is a failure: its
answer may have been to come. Neither ever waits without a limit.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import httpx
import torch
from jaxtyping import Float
from PIL.Image import Image, fromarray
from torch import Tensor

from burnish.models.pixels import to_bytes
from burnish.models.places import unpacked
from burnish.models.released import Dtype, first_line, from_pretrained

T = TypeVar("T")
LARGEST_REPLY = 1_000_000  # bytes; a judge that says more is not answering
LONGEST_PAUSE = 30.0  # seconds between two attempts
WORTH_RETRYING = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that may be different a moment later


@dataclass(frozen=True)
class Failed:
    """No answer, and why."""

    reason: str
    replied: bool = False  # a whole reply came, and nothing could be read in it


UNSOUND = Failed("the picture holds NaN or infinity")


def sound_pictures(images: Float[Tensor, "b 3 h w"]) -> list[Image | None]:
    """Pictures to be shown. None for one with NaN: 8 bits cannot hold that, and would make it a plausible one."""
    sound = images.detach().flatten(1).isfinite().all(1).tolist()
    return [fromarray(levels) if ok else None for levels, ok in zip(to_bytes(images), sound, strict=True)]


class Chat(ABC):
    """Something that can be asked about pictures."""

    @abstractmethod
    def ask(
        self, pictures: Sequence[Sequence[Image]], questions: Sequence[str], read: Callable[[str], T | Failed]
    ) -> list[T | Failed]:
        """What `read` makes of the reply to each question about the pictures beside it, which are shown in order."""


@dataclass(frozen=True)
class Endpoint(Chat):
    """`/chat/completions` of an OpenAI-compatible server, asked greedily and in parallel."""

    url: httpx.URL  # base address, as in http://localhost:8000/v1
    model: str  # name of the model on the server
    key: str = ""  # sent as a bearer token; empty sends none
    timeout: float = 60.0  # seconds for one attempt; a reply that trickles in can stretch it to twice that
    retries: int = 3  # further attempts after a failure that may pass, or an unreadable reply
    pause: float = 0.5  # seconds before the first retry; doubled each time up to 30, with jitter
    concurrency: int = 8  # questions under way at once
    tokens: int = 256  # longest reply
    encoding: str = "png"  # of the pictures sent: png, or jpeg at quality 95

    def ask(
        self, pictures: Sequence[Sequence[Image]], questions: Sequence[str], read: Callable[[str], T | Failed]
    ) -> list[T | Failed]:
        """Answers in the order of the questions. None is waited for longer than its attempts and pauses allow."""
        with self._client() as client:
            threads = ThreadPoolExecutor(self.concurrency)
            try:
                once = {id(picture): picture for shown in pictures for picture in shown}  # pairs share their pictures
                packed = dict(zip(once, threads.map(self._packed, once.values()), strict=True))
                sent = [[packed[id(picture)] for picture in shown] for shown in pictures]
                pairs = zip(sent, questions, strict=True)
                asked = [threads.submit(self._answer, client, shown, words, read) for shown, words in pairs]
                return [future.result() for future in asked]
            finally:  # Ctrl-C waits for what is under way, and asks nothing more
                threads.shutdown(cancel_futures=True)

    def ping(self) -> None:
        """Ask the server for its models. Raises ValueError if it cannot be reached or refuses the key."""
        try:
            with self._client() as client:
                status = client.get("models", timeout=self.timeout).status_code
        except httpx.HTTPError as error:
            raise ValueError(f"cannot reach {self.url}: {type(error).__name__}: {first_line(error)}") from error
        if status in (401, 403):
            raise ValueError(f"{self.url} refuses the key (status {status})")

    def _client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=self.concurrency)
        # A server on this machine is not to be looked for behind the proxy of the environment.
        near = self.url.host in ("localhost", "127.0.0.1", "::1")
        return httpx.Client(base_url=self.url, headers=headers, limits=limits, timeout=self.timeout, trust_env=not near)

    def _answer(
        self, client: httpx.Client, shown: Sequence[str], question: str, read: Callable[[str], T | Failed]
    ) -> T | Failed:
        content = [{"type": "image_url", "image_url": {"url": address}} for address in shown]
        body = {
            "model": self.model,
            "max_tokens": self.tokens,
            "temperature": 0,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": question}]}],
        }
        found: T | Failed = Failed("never asked")
        for attempt in range(self.retries + 1):
            if attempt:
                longest = min(self.pause * 2 ** (attempt - 1), LONGEST_PAUSE)
                time.sleep(longest * random.Random().uniform(0.5, 1.0))  # jitter, so that judges are not asked in step
            reply, again = self._attempt(client, body)
            found = _understood(reply, read)
            if not isinstance(found, Failed) or not again:
                return found
        return replace(found, reason=f"{found.reason} (after {self.retries + 1} attempts)")

    def _packed(self, picture: Image) -> str:
        """A picture as an address that holds it."""
        return f"data:image/{self.encoding};base64,{base64.b64encode(encoded(picture, self.encoding)).decode()}"

    def _attempt(self, client: httpx.Client, body: dict[str, Any]) -> tuple[str | Failed, bool]:
        """The reply, and whether asking again could give a better one."""
        deadline = time.monotonic() + self.timeout
        try:
            with client.stream("POST", "chat/completions", json=body) as response:
                content = _read(response, deadline)
        except httpx.TimeoutException:
            return Failed(f"no answer within {self.timeout:g} s"), True
        except httpx.HTTPError as error:
            return Failed(f"{type(error).__name__}: {first_line(error)}"), True
        if isinstance(content, Failed):
            return content, True
        if response.status_code != 200:
            words = " ".join(content.decode("utf-8", "replace").split())[:120]
            return Failed(f"status {response.status_code}: {words}"), response.status_code in WORTH_RETRYING
        return _text(content, self.tokens), True


def _understood(reply: str | Failed, read: Callable[[str], T | Failed]) -> T | Failed:
    """What `read` makes of a reply. A failure to read it is told from a failure to get it."""
    if isinstance(reply, Failed):
        return reply
    found = read(reply)
    return replace(found, replied=True) if isinstance(found, Failed) else found


def _read(response: httpx.Response, deadline: float) -> bytes | Failed:
    """The body. httpx limits the wait for each byte; this limits the wait for all of them."""
    content = bytearray()
    for part in response.iter_bytes():
        content += part
        if len(content) > LARGEST_REPLY:
            return Failed(f"a reply of more than {LARGEST_REPLY} bytes")
        if time.monotonic() > deadline:
            return Failed("the reply did not end in time")
    return bytes(content)


def _text(content: bytes, tokens: int) -> str | Failed:
    """The words in the body of a chat completion that was to have at most so many tokens."""
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        return Failed(f"not a chat completion ({type(error).__name__})")
    if choice.get("finish_reason") == "length":
        return Failed(f"the reply was cut off after {tokens} tokens")
    return text if isinstance(text, str) else Failed("a chat completion without text")


def encoded(picture: Image, encoding: str) -> bytes:
    """A picture as a PNG, or as a JPEG of quality 95."""
    import io

    buffer = io.BytesIO()
    picture.save(buffer, format=encoding.upper(), **({"quality": 95} if encoding == "jpeg" else {}))
    return buffer.getvalue()


@dataclass(frozen=True)
class ChatSettings:
    """Settings of every reward that asks a vision-language model. `endpoint` for a server, empty for a local model."""

    model: str = "Qwen/Qwen2.5-VL-3B-Instruct"  # name of the model at the endpoint; hub id or folder of a local one
    endpoint: str = (
        ""  # base address of an OpenAI-compatible server, as in http://localhost:8000/v1; empty: a local model
    )
    key_variable: str = ""  # environment variable that holds the server's key; empty: no key
    ping: bool = False  # ask the server for its models before the run starts
    timeout: float = 60.0  # seconds for one attempt; a reply that trickles in can stretch it to twice that
    retries: int = 3  # further attempts after a failure that may pass, or an unreadable reply
    pause: float = 0.5  # seconds before the first retry; doubled each time up to 30, with jitter
    concurrency: int = 8  # questions under way at once
    encoding: Literal["png", "jpeg"] = "png"  # of the pictures sent to a server
    tokens: int = 256  # longest reply; one that is cut off there is a failure
    dtype: Dtype = "bfloat16"  # of a local model's weights
    batch: int = 8  # questions in one forward pass of a local model

    def check(self, where: str) -> None:
        """Raises ValueError, which names `where`, for numbers out of range."""
        for name, least in {"retries": 0, "pause": 0, "concurrency": 1, "tokens": 1, "batch": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{where}.{name}: expected at least {least}, got {getattr(self, name):g}")
        if self.timeout <= 0:
            raise ValueError(f"{where}.timeout: expected more than 0 seconds, got {self.timeout:g}")

    def chat(self, where: str, device: torch.device) -> Chat:
        """The model, ready to be asked. Raises ValueError, which names `where`, for a bad address, key or model."""
        if not self.endpoint:
            return load_local_chat(self.model, f"{where}.model", device, self.dtype, self.batch, self.tokens)
        url = _address(self.endpoint)
        if not url:
            raise ValueError(f"{where}.endpoint: {self.endpoint!r} is no address; expected http://... or https://...")
        chat = Endpoint(
            url, self.model, key_from(self.key_variable, f"{where}.key_variable"), self.timeout,
            self.retries, self.pause, self.concurrency, self.tokens, self.encoding,
        )  # fmt: skip
        if self.ping:
            try:
                chat.ping()
            except ValueError as error:
                raise ValueError(f"{where}.endpoint: {error}; start the server, or set ping: false to go on") from error
        return chat


def _address(text: str) -> httpx.URL | None:
    """The address, or None if it is none. urlsplit refuses brackets and ports that httpx lets pass."""
    try:
        url, _ = httpx.URL(text.rstrip("/")), urlsplit(text).port
    except (httpx.InvalidURL, ValueError):
        return None
    return url if url.scheme in ("http", "https") and url.host and "%" not in url.host else None


def read_question(name: str, beside: Path, where: str) -> tuple[str, str]:
    """First line and rest of a text file: one beside the module `beside`, `MODULE_NAME.txt`, or the path of another.

    Raises ValueError, which starts with `where`, if there is no such file.
    """
    own = beside.parent / f"{beside.stem}_{name}.txt"
    try:
        first, _, text = (own if own.is_file() else Path(name)).read_text("utf-8").partition("\n")
    except (OSError, UnicodeDecodeError) as error:
        files = sorted(beside.parent.glob(f"{beside.stem}_*.txt"))
        choices = ", ".join(file.stem.removeprefix(f"{beside.stem}_") for file in files)
        raise ValueError(f"{where}: {name!r} is no text file (choices: {choices}, or a path)") from error
    return first, text.strip()


def key_from(variable: str, where: str) -> str:
    """The key in an environment variable, "" if no variable is named; ValueError if it is named and not set."""
    if variable and not os.environ.get(variable):
        raise ValueError(f"{where}: the environment variable {variable} is not set")
    return os.environ[variable] if variable else ""


class LocalChat(Chat):
    """A transformers vision-language model, asked greedily in batches."""

    def __init__(self, loaded: _Loaded, batch: int, tokens: int) -> None:
        self.model = loaded.model
        self._loaded = loaded
        self._processor = loaded.processor
        self._batch = batch  # questions in one forward pass
        self._tokens = tokens  # longest reply

    def ask(
        self, pictures: Sequence[Sequence[Image]], questions: Sequence[str], read: Callable[[str], T | Failed]
    ) -> list[T | Failed]:
        """One reply each: a greedy model asked again would say the same."""
        found: list[T | Failed] = []
        for start in range(0, len(pictures), self._batch):
            some = slice(start, start + self._batch)
            found += [_understood(reply, read) for reply in self._replies(pictures[some], questions[some])]
        return found

    @torch.no_grad()
    def _replies(self, pictures: Sequence[Sequence[Image]], questions: Sequence[str]) -> list[str | Failed]:
        talks = []
        for shown, question in zip(pictures, questions, strict=True):
            content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in shown]
            talks.append([{"role": "user", "content": [*content, {"type": "text", "text": question}]}])
        inputs = self._processor.apply_chat_template(
            talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, dtype=self.model.dtype)  # fmt: skip
        replies = self.model.generate(**inputs, do_sample=False, max_new_tokens=self._tokens)
        replies = replies[:, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id  # one, several, or None
        ended = torch.isin(replies, torch.tensor(-1 if ends is None else ends, device=replies.device)).any(1).tolist()
        texts = self._processor.batch_decode(replies, skip_special_tokens=True)
        cut = Failed(f"the reply was cut off after {self._tokens} tokens")
        return [text if whole else cut for text, whole in zip(texts, ended, strict=True)]


@dataclass(frozen=True, eq=False)
class _Loaded:
    model: Any
    processor: Any


# Judges that ask the same model other questions share its weights, for as long as one of them is alive.
_LOADED: WeakValueDictionary[tuple[str, str, str], _Loaded] = WeakValueDictionary()


def load_local_chat(weights: str, where: str, device: torch.device, dtype: Dtype, batch: int, tokens: int) -> LocalChat:
    """A model and its processor from a hub id or local folder, or a ValueError that starts with `where`."""
    key = (weights, str(device), dtype)
    loaded = _LOADED.get(key) or _load(weights, where, device, dtype)
    _LOADED[key] = loaded
    return LocalChat(loaded, batch, tokens)


def _load(weights: str, where: str, device: torch.device, dtype: Dtype) -> _Loaded:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = from_pretrained(AutoModelForImageTextToText, weights, where, device, dtype)
    try:
        processor = AutoProcessor.from_pretrained(unpacked(weights))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: no processor could be read from {weights!r}: {first_line(error)}") from error
    processor.tokenizer.padding_side = "left"  # replies of a batch must start at the same place
    return _Loaded(model, processor)
