"""Pipelines whose secrets go everywhere that they can: what is told of their runs must not show them."""

from __future__ import annotations

import logging
import sys
import threading
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, SecretStr

from pipeserve import (
    HTML,
    Cache,
    InvocationError,
    Redact,
    Retry,
    Secret,
    emit,
    log_metadata,
    pipeline,
    progress,
    step,
    visualize,
)

TOKEN = 'tok"en-öne-4711'  # JSON, repr and URLs write it in their own ways
PIN = 918273
NESTED = "nested-in-a-model-77"
DEEPER = "deeper-in-a-list-88"
PYDANTICS = "pydantics-own-99"
OVERRIDE = "set-for-a-step-55"
SHORT = "xq9"
MADE = "made-by-a-step-33"
PERSONAL = "personal-and-redacted-22"

SECRETS: dict[str, str] = {
    "token": TOKEN,
    "pin": str(PIN),
    "nested": NESTED,
    "deeper": DEEPER,
    "pydantic's": PYDANTICS,
    "override": OVERRIDE,
    "made": MADE,
    "redacted": PERSONAL,
}

_log = logging.getLogger("tests.masked")


@dataclass
class Login:
    name: str
    password: Secret[str]


class Options(BaseModel):
    key: Secret[str] = Field(alias="apiKey")
    logins: list[Login] = []
    size: int = 3


PARAMETERS: dict[str, Any] = {
    "token": TOKEN,
    "pin": PIN,
    "options": {"apiKey": NESTED, "logins": [{"name": "ann", "password": DEEPER}], "size": 2},
    "pydantic": PYDANTICS,
    "short": SHORT,
    "personal": PERSONAL,
    "leak.extra": OVERRIDE,
}


def tell(secret: Any) -> None:
    """Let ``secret`` out in every way."""
    print("printed", secret)
    print(f"in pieces {str(secret)[:5]}", end="")
    print(str(secret)[5:])
    print(f"to stderr {secret!r}", file=sys.stderr)
    _log.warning("logged %s", secret, extra={"given": secret, "given_inside": {"it": secret}})
    try:
        raise KeyError(secret)
    except KeyError:
        _log.exception("an error")
    thread = threading.Thread(target=lambda: (print("a thread", secret), _log.info("a thread %r", secret)))
    thread.start()
    thread.join()
    log_metadata({"secret": secret, "inside": [f"it is {secret}"], str(secret): 1})
    emit({"it": secret})
    progress(0.5, f"at {secret}")
    visualize(HTML(f"<p>{secret}</p>"), f"about {secret}")


@step(cache=Cache(key=lambda **arguments: arguments["undefined"]))
def leak(
    token: str, pin: int, options: Options, pydantic: SecretStr, personal: str, extra: Secret[str] = "none"
) -> int:
    for secret in (token, pin, options.key, options.logins[0].password, pydantic.get_secret_value(), personal, extra):
        tell(secret)
    return options.size


@step
def make(size: int) -> Secret[str]:
    tell(MADE)  # before anybody can know that this is what it returns
    return MADE


@step(retry=Retry(attempts=2, backoff=0.001))
def use(made: str, fails: str, token: str) -> str:
    tell(made)
    if fails == "own words":
        raise InvocationError(status=409, code="refused", detail=f"refused {made} and {token}")
    if fails:
        raise RuntimeError(f"it broke with {made!r} and {token!r}")
    return "used"


@step
def look_up(personal: str) -> Redact[str]:
    return personal


@pipeline(dynamic=False)
def careful(
    token: Secret[str],
    pin: Secret[int],
    options: Options,
    pydantic: SecretStr,
    short: Secret[str],
    personal: Redact[str],
    fails: str = "",
) -> dict[str, Any]:
    made = make(leak(token, pin, options, pydantic, personal))
    return {"used": use(made, fails, token), "made": made, "person": look_up(personal)}


class CarelessOptions(BaseModel):
    key: str = Field(alias="apiKey")
    logins: list[dict[str, str]] = []


@step
def leak_openly(token: str, pin: int, options: CarelessOptions, pydantic: str, personal: str, extra: str = "") -> str:
    for value in (token, pin, options.key, options.logins[0]["password"], pydantic, personal, extra, MADE):
        tell(value)
    return "used"


@pipeline
def careless(
    token: str, pin: int, options: CarelessOptions, pydantic: str, short: str, personal: str
) -> Annotated[str, "used"]:
    """The same without a word about secrets."""
    return leak_openly.with_name("leak")(token, pin, options, pydantic, personal)
