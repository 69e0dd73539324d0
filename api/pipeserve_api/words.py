"""Durations, counts and what became of a step, in plain words, for explanations."""

from __future__ import annotations

from collections.abc import Sequence

from pipeserve.jobs import CacheReceipt, Eta, StepReport, WebhookReport
from pipeserve.runtime.ports import PRIORITY_SECONDS

_LISTED = 5  # names in one sentence
_WHOLE = ("code", "key")  # parts of a cache key that are no arguments; of an argument so named the same words are true


# ---- steps


def step_words(step: StepReport) -> str:
    """What became of one step call: how it came by its value, and how it ended."""
    parts: list[str] = []
    if step.resumed:
        parts.append("not run again, an earlier attempt had recorded its result")
    elif step.cache is not None:
        parts.append(cache_words(step.cache, ended=step.status == "completed"))
    if step.calls > 1:
        parts.append(_calls_words(step))
    if step.batch is not None:
        with_others = f"gathered with {many(step.batch - 1, 'other call')} into one"
        parts.append(with_others if step.batch > 1 else "called alone, no other call came in time")
    if step.status != "completed":
        parts.append({"timed_out": "stopped by a timeout", "running": "still running"}.get(step.status, step.status))
    return "; ".join(parts) or "ran"


def _calls_words(step: StepReport) -> str:
    failed = step.calls if step.status == "failed" else step.calls - 1
    who = "every call failed" if failed == step.calls else f"{number(failed)} call{plural(failed)} failed"
    return f"called {'twice' if step.calls == 2 else f'{step.calls} times'}, {who}"


def cache_words(receipt: CacheReceipt, *, ended: bool = True) -> str:
    """What the step cache did for a call; ``ended``: it has a result, which may have been kept."""
    kept = "" if receipt.stored or not ended else "; the result was not kept"
    match receipt.status:
        case "hit":
            age = "" if receipt.age is None else f", the value was {age_words(receipt.age)} old"
            return f"cache hit, {duration_words(receipt.saved)} saved{age}"
        case "shared_hit":
            return f"cache hit, {duration_words(receipt.saved)} saved, from the cache that all processes share"
        case "joined":
            return "an equal call was under way, and its result was used"
        case "bypass":
            return f"the cache was not asked, because the request said so{kept}"
        case "miss":
            if receipt.reason == "unhashable":
                detail = receipt.detail or f"not cached: {_subjects(receipt.changed)} can't be compared"
                return lower_first(detail.rstrip("."))
            return f"cache miss, because {_reason(receipt)}{kept}"


def _reason(receipt: CacheReceipt) -> str:
    match receipt.reason:
        case "changed" if receipt.changed:
            verb = "differs" if len(receipt.changed) == 1 else "differ"
            return f"{_subjects(receipt.changed)} {verb} from the nearest earlier call"
        case "first_call":
            return "this process had no earlier call of the step"
        case "expired":
            return "the value had expired"
        case "evicted":
            return "there was no room for the value, or no longer"
        case _:
            return receipt.reason or "there was no value"


def _arguments(changed: Sequence[str]) -> list[str]:
    return [name for name in changed if name not in _WHOLE]


def _subjects(changed: Sequence[str]) -> str:
    """Parts of a cache key, as a sentence's subject: "its code and argument text"."""
    subjects = [f"its {name}" for name in changed if name in _WHOLE]
    if names := _arguments(changed):
        subjects.append(f"argument{plural(len(names))} {listed(names)}")
    return listed(subjects)


# ---- waiting and webhooks


def place_words(position: int | None, tenant: str | None) -> str:
    """Where in the queue a job is, and by whose turn it goes."""
    turn = "" if tenant is None else f"; the jobs of tenant {tenant} take turns with those of others"
    if not position:
        return f"it is the next{turn}"
    return f"{many(position, 'job')} {'is' if position == 1 else 'are'} before it{turn}"


def priority_words(priority: int) -> str:
    """What a priority that is not 0 is worth."""
    worth = age_words(abs(priority) * PRIORITY_SECONDS)
    effect = f"puts it where {worth} more of waiting would" if priority > 0 else f"has others pass it for {worth}"
    return f"Its priority of {priority} {effect}."


def eta_words(eta: Eta) -> str:
    """When it will have ended."""
    soon, late = age_words(eta.p50), age_words(eta.p90)
    return f"It will have ended in {soon} as likely as not, and in {late} nine times in ten."


def webhook_words(webhook: WebhookReport) -> str:
    """What was sent last, and what is to come."""
    last = webhook.deliveries[-1] if webhook.deliveries else None
    after = {"failed": "; no more tries are made", "disabled": "; nothing more is sent"}.get(webhook.status, "")
    if last is None:
        return f"nothing was sent{after or (' yet' if webhook.status == 'active' else '')}"
    answered = "" if last.status_code is None else f", the answer was {last.status_code}"
    if last.error is None:
        return f"{last.event_type} was delivered{answered}{after}"
    why = answered or f", {lower_first(last.error.rstrip('.'))}"
    return f"{last.event_type} was not delivered, {many(last.attempt, 'try', 'tries')}{why}{after}"


# ---- figures


def duration_words(seconds: float) -> str:
    """``0.012 s``; less than a millisecond in milliseconds."""
    if seconds >= 100:
        return f"{seconds:.0f} s"
    return f"{seconds:.3f} s" if seconds >= 0.001 or not seconds else f"{seconds * 1000:.3f} ms"


def age_words(seconds: float) -> str:
    """``12 s``: as exactly as one wants to know an age."""
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def number(count: int) -> str:
    """``two``; in digits from six on."""
    return {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}.get(count, str(count))


def many(count: int, noun: str, several: str | None = None) -> str:
    """``3 jobs``; ``several``: its plural, if that takes more than an s."""
    return f"{count} {several if several is not None and count != 1 else noun + plural(count)}"


def plural(count: int) -> str:
    """An s, unless it is one."""
    return "" if count == 1 else "s"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``; of many the first, and how many more."""
    shown = list(words[:_LISTED]) + ([f"{len(words) - _LISTED} more"] if len(words) > _LISTED else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def lower_first(text: str) -> str:
    """``text`` as it goes on within a sentence."""
    return text[:1].lower() + text[1:]
