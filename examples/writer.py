"""Write about Python, one word at a time: a Markov chain that has read the language reference.

CPython ships the text of its language reference for ``help("while")``, in ``pydoc_data.topics``: about 30,000 words
and marks of real prose, there without a network. ``on_init`` reads it once per process and counts which word follows
which. ``write`` then draws word after word and yields each, so whoever streams the job sees the text grow::

    pipeserve serve examples/writer.py:writer
    curl -sN localhost:8001/invoke -H 'Accept: text/event-stream' \\
        --json '{"parameters": {"prompt": "A class", "length": 60, "seed": 7, "write.delay": 0.05}}'

The same seed writes the same text, on every machine with the same Python.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pydoc_data.topics import topics
from typing import Annotated, cast

from pydantic import Field

from pipeserve import get_context, log_metadata, pipeline, progress, step

logger = logging.getLogger(__name__)

ORDER = 3  # words of context; with more, the chain only quotes
FORGETTING = 0.2  # how much less each shorter context counts than the next longer one
END = "."

# The reference is plain text made from reStructuredText: code is indented or "quoted", emphasis is *starred*.
BLOCK_END = re.compile(r"\n\s*\n")
WRAPPED_HYPHEN = re.compile(r"(?<=\w)-\n\s*(?=\w)")
STARS = re.compile(r"(?<![\w*])\*{1,2}(\w[^*\n]*)\*{1,2}(?![\w*])")
ASIDE = re.compile(r"\s*\((?:[Ss]ee|since|added|changed)[^()]*\)|\s*\[\d+\]")
BEGINS_PROSE = re.compile(r"[A-Z\"]")
NOT_PROSE = re.compile(
    r"^\s|^[*+#>-]|::=|>>>|^See also|^(?:Added|Changed|Deprecated|New|Removed) in version", re.MULTILINE
)
TOKEN = re.compile(r"\"[^\"]{1,30}\"|[\w$@]+(?:[-'./\u2019][\w$]+)*(?:\(\))?|[,.;:!?]")
PUNCTUATION = frozenset(",.;:!?")


# Reading.


def read_prose(documents: Iterable[str]) -> Iterator[str]:
    """The paragraphs of ``documents`` that are prose, without markup: no headings, code, grammar or lists."""
    for document in documents:
        for block in BLOCK_END.split(document.replace("`", '"')):
            paragraph = textwrap.dedent(block).strip()
            if not BEGINS_PROSE.match(paragraph) or not paragraph.endswith(".") or NOT_PROSE.search(paragraph):
                continue
            paragraph = " ".join(WRAPPED_HYPHEN.sub("-", paragraph).split())
            yield ASIDE.sub("", STARS.sub(r"\1", paragraph))


def tokenize(text: str) -> list[str]:
    """Words, ``"quoted code"`` and punctuation marks, in order."""
    return TOKEN.findall(text)


def spell(token: str, previous: str | None) -> str:
    """``token`` as it is written after ``previous``: with a blank before it, unless it is a punctuation mark."""
    return token if previous is None or token in PUNCTUATION else f" {token}"


@dataclass(frozen=True, slots=True)
class Chain:
    """Which token followed which, by the last 0 to ``ORDER`` tokens."""

    followers: dict[tuple[str, ...], Counter[str]]
    tokens: int

    @classmethod
    def of(cls, paragraphs: Iterable[str]) -> Chain:
        """Count the followers in ``paragraphs``. Each is read as if the end of a sentence stood before it."""
        followers: dict[tuple[str, ...], Counter[str]] = {}
        total = 0
        for paragraph in paragraphs:
            tokens = [END, *tokenize(paragraph)]
            total += len(tokens) - 1
            for place in range(1, len(tokens)):
                for length in range(min(ORDER, place) + 1):
                    followers.setdefault(tuple(tokens[place - length : place]), Counter())[tokens[place]] += 1
        return cls(followers, total)

    def weigh(self, context: Sequence[str]) -> dict[str, float]:
        """How likely each token follows ``context``: all contexts that were read have a say, the longest the most."""
        weights: dict[str, float] = {}
        share = 1.0
        for length in range(min(ORDER, len(context)), 0, -1):
            counts = self.followers.get(tuple(context[-length:]))
            if counts is None:
                continue
            total = counts.total()
            for token, count in counts.items():
                weights[token] = weights.get(token, 0.0) + share * count / total
            share *= FORGETTING
        # Words that were never read say nothing about what follows: begin a new thought.
        return weights or {token: float(count) for token, count in self.followers[END,].items()}

    def draw(self, context: Sequence[str], temperature: float, dice: random.Random) -> str:
        """The next token. Temperature 0 takes the likeliest, 1 draws as the text has it, above is bolder."""
        weights = self.weigh(context)
        if temperature == 0:
            return max(weights, key=lambda token: weights[token])
        best = max(weights.values())  # a ratio to the best: a small temperature must not underflow to all zeros
        return dice.choices(list(weights), [(weight / best) ** (1 / temperature) for weight in weights.values()])[0]


def learn() -> Chain:
    """Read the language reference, once per process."""
    # Topics overlap: the same paragraph stands under "if", "while" and "compound". It is read once.
    chain = Chain.of(dict.fromkeys(read_prose(topics.values())))
    logger.info("read %d tokens, %d contexts", chain.tokens, len(chain.followers))
    return chain


# Writing.


@step
async def write(prompt: str, length: int, seed: int, temperature: float, delay: float = 0.0) -> AsyncIterator[str]:
    """Yield ``length`` tokens that go on from ``prompt``, each spelled so that joining them gives the text.

    ``delay`` is in seconds between tokens, for those who like to watch: a caller sets it as ``write.delay``.
    """
    chain = cast("Chain", get_context().pipeline_state)
    dice = random.Random(seed)
    # Without a prompt it begins like a paragraph: after the end of a sentence, with nothing before the first word.
    context = tokenize(prompt) or [END]
    previous = context[-1] if prompt.strip() else None
    log_metadata({"tokens_read": chain.tokens, "contexts": len(chain.followers)})
    for count in range(1, length + 1):
        token = chain.draw(context[-ORDER:], temperature, dice)
        yield spell(token, previous)
        context.append(token)
        previous = token
        progress(count / length)
        await asyncio.sleep(delay)  # also with 0: others on the loop get their turn, and a cancel is seen


@step
def join(prompt: str, tokens: list[str]) -> str:
    """Join the prompt and what was written."""
    return prompt.rstrip() + "".join(tokens)


@pipeline(on_init=learn)
async def writer(
    prompt: Annotated[str, Field(max_length=2000, description="how the text begins; may be empty")] = "",
    length: Annotated[int, Field(ge=1, le=1000, description="words and punctuation marks to write")] = 60,
    seed: int = 1,
    temperature: Annotated[
        float, Field(ge=0, le=5, description="0 plays safe, 1 is like the text, more is bolder")
    ] = 1.0,
) -> Annotated[str, "text"]:
    """Write about Python, token by token."""
    tokens = await write(prompt, length, seed, temperature)
    return join(prompt, tokens)
