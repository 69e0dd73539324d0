"""Signing, and checking a signature: by our function, and by the lines that the documentation gives to receivers."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.webhooks.receiver import SECRET

from pipeserve.errors import ConfigurationError
from pipeserve.webhooks import SignatureError, Signer, verify

BODY = b'{"test": 2432232314}'
OTHER = "whsec_" + base64.b64encode(b"another secret of 32 bytes, here").decode()


def documented_verify() -> Callable[[Mapping[str, str], bytes, str], Any]:
    """The function that docs/webhooks.md gives to receivers."""
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "def check(" in b)
    names: dict[str, Any] = {}
    exec(block, names)
    return names["check"]


def signed(secrets: str = SECRET, *, body: bytes = BODY, age: int = 0) -> dict[str, str]:
    return Signer.from_secrets(secrets).headers("msg_1", int(time.time()) - age, body)


def test_a_signature_is_that_of_the_standards_own_example() -> None:
    headers = Signer.from_secrets(SECRET).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, BODY)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_what_was_signed_is_returned() -> None:
    assert verify({name.title(): value for name, value in signed().items()}, BODY, SECRET) == {"test": 2432232314}


@pytest.mark.parametrize("known", [SECRET, OTHER])
def test_a_receiver_with_either_secret_accepts_while_one_replaces_the_other(known: str) -> None:
    headers = signed(f"{OTHER} {SECRET}")
    assert len(headers["webhook-signature"].split()) == 2
    assert verify(headers, BODY, known)
    assert documented_verify()(headers, BODY, known)


@pytest.mark.parametrize("timestamp", ["9" * 13, "9" * 400, "9" * 5000])
def test_a_time_out_of_all_bounds_is_refused_as_any_wrong_one(timestamp: str) -> None:
    headers = signed() | {"webhook-timestamp": timestamp}
    with pytest.raises(SignatureError):
        verify(headers, BODY, SECRET)
    with pytest.raises(ValueError):  # noqa: PT011 - the sample raises ValueError for whatever is wrong
        documented_verify()(headers, BODY, SECRET)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-signature"])
def test_headers_that_are_no_text_are_refused_as_any_wrong_ones(name: str) -> None:
    with pytest.raises(SignatureError):
        verify(signed() | {name: "v1,\udc80"}, BODY, SECRET)


def test_a_receiver_may_know_two_secrets_too() -> None:
    assert verify(signed(SECRET), BODY, f"{OTHER} {SECRET}")


def without_id() -> dict[str, str]:
    return {name: value for name, value in signed().items() if name != "webhook-id"}


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        (lambda: signed(body=BODY + b" "), "no signature"),
        (lambda: signed(OTHER), "no signature"),
        (lambda: {**signed(), "webhook-id": "msg_2"}, "no signature"),
        (lambda: {**signed(age=10), "webhook-timestamp": str(int(time.time()))}, "no signature"),
        (
            lambda: {**signed(), "webhook-signature": signed()["webhook-signature"].replace("v1,", "v2,")},
            "no signature",
        ),
        (lambda: signed(age=600), "more than 300 s"),
        (lambda: signed(age=-600), "more than 300 s"),
        (lambda: {**signed(), "webhook-timestamp": "soon"}, "whole seconds"),
        (without_id, "no header webhook-id"),
    ],
)
def test_what_was_not_signed_so_is_refused(headers: Callable[[], dict[str, str]], why: str) -> None:
    with pytest.raises(SignatureError, match=why):
        verify(headers(), BODY, SECRET)
    with pytest.raises((ValueError, KeyError)):
        documented_verify()(headers(), BODY, SECRET)


def test_a_secret_needs_no_prefix() -> None:
    assert verify(signed(SECRET.removeprefix("whsec_")), BODY, SECRET)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_not base64!",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        f"{SECRET} short",
    ],
)
def test_a_wrong_secret_is_refused_by_the_name_of_its_variable_and_is_not_shown(secret: str) -> None:
    with pytest.raises(ConfigurationError, match="PIPESERVE_WEBHOOK_SECRET") as refused:
        Signer.from_secrets(secret)
    assert SECRET not in str(refused.value)
    assert not secret or secret.removeprefix("whsec_") not in str(refused.value) or secret == "whsec_"
