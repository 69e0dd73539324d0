"""Read a text document: its language statistics, its most telling terms, its key sentences and a summary.

It needs nothing but pipeserve, and it is real: the statistics are counted, readability is the Flesch formula of the
document's own language, and the key sentences come from TextRank, a random walk over the sentences.

::

                    ┌── measure ───────────────────────────────► statistics
    read ── detect ─┼── find_terms ────────────────────────────► terms
                    └── rank_sentences ── choose_sentences ─┬──► key_sentences
                                                            └ summarize ► summary

Serve it and ask::

    pipeserve serve examples/quickstart.py:quickstart
    curl -s localhost:8001/invoke --json '{"parameters": {"text": "Rivers shape the land. They also feed it."}}'
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from pipeserve import InvocationError, log_metadata, pipeline, progress, step

logger = logging.getLogger(__name__)


# What the steps hand to each other, and what the caller gets.


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence, its words in lower case, and its place in its paragraph, from 0."""

    text: str
    words: tuple[str, ...]
    place: int


@dataclass(frozen=True, slots=True)
class Document:
    """A text, taken apart."""

    sentences: tuple[Sentence, ...]
    paragraphs: int
    characters: int

    @property
    def words(self) -> list[str]:
        """All words in order."""
        return [word for sentence in self.sentences for word in sentence.words]


@dataclass(frozen=True, slots=True)
class Language:
    """A guess: an ISO 639-1 code, or ``und`` for none; ``share`` of the words are this language's stop words."""

    code: str
    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """What can be counted. ``reading_ease`` is Flesch's, about 0 (very hard) to 100 (very easy); None: no language."""

    language: Language
    characters: int
    paragraphs: int
    sentences: int
    words: int
    unique_words: int
    average_sentence_length: float
    average_word_length: float
    syllables_per_word: float
    reading_ease: float | None
    reading_minutes: float


@dataclass(frozen=True, slots=True)
class Term:
    """A word or a pair of words, and how often it stands in the document."""

    term: str
    count: int


@dataclass(frozen=True, slots=True)
class KeySentence:
    """A sentence worth reading first. ``index`` is its place in the document, ``score`` 1.0 for the best."""

    index: int
    score: float
    text: str


# What is known of each language.


@dataclass(frozen=True, slots=True)
class Flesch:
    """Reading ease = ``base - per_sentence * words per sentence - per_word * syllables per word``."""

    base: float
    per_sentence: float
    per_word: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One language: its name, its variant of the Flesch formula and its stop words."""

    name: str
    flesch: Flesch
    stop_words: frozenset[str]


def words_of(text: str) -> frozenset[str]:
    """The words of ``text``, which stand between blanks."""
    return frozenset(text.split())


LANGUAGES = {
    "en": Profile(
        "English",
        Flesch(206.835, 1.015, 84.6),  # Flesch 1948
        words_of(
            """a about above after again all also am an and any are as at be because been before being below between
            both but by can could did do does doing down during each few for from further had has have having he her
            here hers him his how i if in into is it its itself just may me might more most must my no nor not now of
            off on once one only or other our out over own s same shall she should so some such t than that the their
            them then there these they this those through to too two under until up upon us very was we were what when
            where which while who whom whose why will with would you your"""
        ),
    ),
    "de": Profile(
        "German",
        Flesch(180.0, 1.0, 58.5),  # Amstad 1978
        words_of(
            """aber alle als also am an auch auf aus bei bin bis bist da damit dann das dass dein dem den denn der des
            die dies diese dieser dieses doch dort du durch ein eine einem einen einer eines er es euch für gegen hat
            hatte haben hier ich ihr ihre im in ist ja jede jeder kann kein keine können man mehr mein mit muss nach
            nicht noch nun nur ob oder ohne sehr sein seine sich sie sind so über um und uns unter vom von vor war
            waren was weil wenn werden wie wir wird wo wurde wurden zu zum zur zwischen"""
        ),
    ),
    "fr": Profile(
        "French",
        Flesch(207.0, 1.015, 73.6),  # Kandel and Moles 1958
        words_of(
            """à ai alors au aucun aussi autre aux avait avant avec avoir c ce cela ces cet cette chez comme d dans de
            depuis des deux donc dont du elle elles en entre est et étaient était être eux fait il ils j je l la le les
            leur leurs lui m ma mais me même mes mon n ne nos notre nous on ont ou où par pas peu plus pour qu quand
            que qui s sa sans se ses si son sont sous sur t ta te tes ton toujours tous tout toute très tu un une vos
            votre vous y"""
        ),
    ),
    "es": Profile(
        "Spanish",
        Flesch(206.84, 1.02, 60.0),  # Fernández Huerta 1959
        words_of(
            """a al algo antes aunque como con contra cual cuando de del desde donde dos durante e el él ella ellas
            ellos en entre era eran es esa ese eso esta está están estas este esto estos fue fueron ha había han hasta
            hay la las le les lo los más me mi mientras muy no nos o otra otro otros para pero poco por porque puede
            que qué quien se sea según ser si sí sin sino sobre son su sus también tan tanto te tiene todo todos tu un
            una uno unos y ya yo"""
        ),
    ),
}
NO_LANGUAGE = Language("und", "unknown", 0.0)
LEAST_SHARE = 0.2  # with fewer stop words than this it is running text of none of the four

WORDS_PER_MINUTE = 238  # silent reading of non-fiction: Brysbaert 2019
DAMPING = 0.85  # the share of steps that follow a similarity; the rest jump to where sentences usually matter
ROUNDS = 50
SETTLED = 1e-4
ALONE = 1e-9  # a sentence less like all others than this is like none
NEAR_DUPLICATE = 0.5  # two sentences that share half of their words say the same

WORD = re.compile(r"[^\W\d_]+(?:[-\u2019'][^\W\d_]+)*|\d+(?:[.,]\d+)*")  # with an apostrophe, straight or curly, inside
PARAGRAPH_END = re.compile(r"\n\s*\n")
CLOSING, OPENING = r"""["'\u201d\u2019»)\]]*""", r"""["'\u201c\u2018\u201e«(\[¿¡]*"""
SENTENCE_END = re.compile(rf"[.!?…]+{CLOSING}\s+(?={OPENING}[A-ZÀ-ÖØ-Þ0-9])")
ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|cf|No|Nr|Fig|Inc|Ltd|bzw|ca|z\.B|d\.h|usw|Sra?|Mme|M)|\b[A-Z])\.$"
)
VOWELS = re.compile(r"[aeiouyàâäáåæèéêëìíîïòóôöøœùúûüýÿ]+")
SILENT_ENDING = {
    "en": re.compile(r"(?:[^aeiouyl]|[aeiouy]l)e$|[^aeiouytd]ed$|[^aeiouyszxlcg]es$"),
    "fr": re.compile(r"[^aeiouyéèêà](?:es?|ent)$"),
}


# The steps.


@step
def read(text: str) -> Document:
    """Take ``text`` apart into paragraphs, sentences and words. A text without a word is refused."""
    text = unicodedata.normalize("NFC", text).strip()
    paragraphs = [paragraph for paragraph in PARAGRAPH_END.split(text) if WORD.search(paragraph)]
    if not paragraphs:
        raise InvocationError(status=422, code="empty_document", detail="the text has no word in it")
    sentences: list[Sentence] = []
    for number, paragraph in enumerate(paragraphs, start=1):
        for place, sentence in enumerate(split_sentences(paragraph)):
            words = tuple(word.lower().replace("\u2019", "'") for word in WORD.findall(sentence))
            sentences.append(Sentence(sentence, words, place))
        progress(number / len(paragraphs), f"paragraph {number} of {len(paragraphs)}")
    document = Document(tuple(sentences), len(paragraphs), len(text))
    logger.info("read %d sentences, %d words", len(sentences), len(document.words))
    return document


@step
def detect(document: Document) -> Language:
    """Guess the language by the share of words that are its stop words."""
    words = document.words
    shares = {
        code: sum(word in profile.stop_words for word in words) / len(words) for code, profile in LANGUAGES.items()
    }
    log_metadata({"stop_word_shares": {code: round(share, 3) for code, share in shares.items()}})
    code = max(shares, key=lambda code: shares[code])
    if shares[code] < LEAST_SHARE:
        return NO_LANGUAGE
    return Language(code, LANGUAGES[code].name, round(shares[code], 3))


@step
def measure(document: Document, language: Language) -> Statistics:
    """Count, and judge how hard the text is to read."""
    words = document.words
    words_per_sentence = len(words) / len(document.sentences)
    syllables_per_word = sum(count_syllables(word, language.code) for word in words) / len(words)
    ease = None
    if language.code in LANGUAGES:
        flesch = LANGUAGES[language.code].flesch
        ease = flesch.base - flesch.per_sentence * words_per_sentence - flesch.per_word * syllables_per_word
    return Statistics(
        language=language,
        characters=document.characters,
        paragraphs=document.paragraphs,
        sentences=len(document.sentences),
        words=len(words),
        unique_words=len(set(words)),
        average_sentence_length=round(words_per_sentence, 2),
        average_word_length=round(sum(map(len, words)) / len(words), 2),
        syllables_per_word=round(syllables_per_word, 2),
        reading_ease=None if ease is None else round(ease, 1),
        reading_minutes=round(len(words) / WORDS_PER_MINUTE, 2),
    )


@step
def find_terms(document: Document, language: Language, limit: int) -> list[Term]:
    """The most frequent words that carry meaning, and pairs of them that stand together more than once."""
    counts: Counter[str] = Counter()
    for sentence in document.sentences:
        counts.update(word for word in sentence.words if carries_meaning(word, language))
        counts.update(
            f"{first} {second}"
            for first, second in pairwise(sentence.words)
            if carries_meaning(first, language) and carries_meaning(second, language)
        )
    # A pair that stands there once is chance; a single word always counts.
    terms = [Term(term, count) for term, count in counts.items() if count > 1 or " " not in term]
    return sorted(terms, key=lambda term: (-term.count, -len(term.term), term.term))[:limit]


@step
def rank_sentences(document: Document, language: Language) -> list[float]:
    """TextRank: one score per sentence, in the document's order; they sum to 1.

    A sentence matters when sentences that matter are like it. Likeness is the cosine of TF-IDF vectors, so one
    round of the walk is two sparse products, ``V (Vᵀ r)``: the n by n matrix of likenesses is never built, and the
    time is linear in the document's length.
    """
    vectors = weigh_words(document, language)
    prior = normalize([1 / (1 + sentence.place) for sentence in document.sentences])  # paragraphs open with their topic
    degrees = spread(vectors, [1.0] * len(vectors))
    scores, rounds, moved = prior, 0, 1.0
    while moved > SETTLED and rounds < ROUNDS:
        passed_on = [score / degree if degree > ALONE else 0.0 for score, degree in zip(scores, degrees, strict=True)]
        walked = spread(vectors, passed_on)
        after = normalize([(1 - DAMPING) * p + DAMPING * w for p, w in zip(prior, walked, strict=True)])
        moved = sum(abs(new - old) for new, old in zip(after, scores, strict=True))
        scores, rounds = after, rounds + 1
        progress(rounds / ROUNDS, f"round {rounds}, moved {moved:.1e}")
    log_metadata({"textrank_rounds": rounds})
    return scores


@step
def choose_sentences(document: Document, scores: list[float], count: int) -> list[KeySentence]:
    """The ``count`` best sentences, best first, without those that repeat a better one."""
    best = max(scores)
    chosen: list[int] = []
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        words = set(document.sentences[index].words)
        if all(overlap(words, set(document.sentences[other].words)) < NEAR_DUPLICATE for other in chosen):
            chosen.append(index)
            progress(len(chosen) / count)
        if len(chosen) == count:
            break
    return [KeySentence(index, round(scores[index] / best, 3), document.sentences[index].text) for index in chosen]


@step
def summarize(sentences: list[KeySentence], max_words: int = 150) -> str:
    """The key sentences as one text, in the document's order; the weakest go when it is over ``max_words``."""
    kept, words = sentences[:1], len(sentences[0].text.split())
    for sentence in sentences[1:]:
        words += len(sentence.text.split())
        if words > max_words:
            break
        kept = [*kept, sentence]
    return " ".join(sentence.text for sentence in sorted(kept, key=lambda sentence: sentence.index))


@pipeline
def quickstart(
    text: str,
    sentences: Annotated[int, Field(ge=1, le=50)] = 3,
    terms: Annotated[int, Field(ge=0, le=100)] = 10,
) -> tuple[
    Annotated[Statistics, "statistics"],
    Annotated[list[Term], "terms"],
    Annotated[list[KeySentence], "key_sentences"],
    Annotated[str, "summary"],
]:
    """Language statistics, key sentences and a summary of a text document."""
    document = read(text)
    language = detect(document)
    statistics = measure(document, language)
    top_terms = find_terms(document, language, terms)
    scores = rank_sentences(document, language)
    key_sentences = choose_sentences(document, scores, sentences)
    return statistics, top_terms, key_sentences, summarize(key_sentences)


# What the steps are made of.


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of one paragraph. ``Dr. Who`` and ``J. S. Bach`` do not end one."""
    paragraph = " ".join(paragraph.split())
    sentences: list[str] = []
    start = 0
    for end in SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : end.end()].rstrip()
        if ABBREVIATION.search(sentence):
            continue
        sentences.append(sentence)
        start = end.end()
    sentences.append(paragraph[start:])
    return [sentence for sentence in sentences if WORD.search(sentence)]


def count_syllables(word: str, language: str = "en") -> int:
    """The syllables of a word in lower case: its groups of vowels, less a silent ending. A number counts as one."""
    groups = len(VOWELS.findall(word))
    silent = SILENT_ENDING.get(language)
    if groups > 1 and silent is not None and silent.search(word):
        groups -= 1
    return max(groups, 1)


def carries_meaning(word: str, language: Language) -> bool:
    """Whether a word says what a text is about: no stop word, no number, no single letter."""
    if len(word) == 1 or word[0].isdigit():
        return False
    profile = LANGUAGES.get(language.code)
    return profile is None or not any(part in profile.stop_words for part in (word, word.partition("'")[0]))


def weigh_words(document: Document, language: Language) -> list[dict[str, float]]:
    """One TF-IDF vector of length 1 per sentence; empty where no word carries meaning."""
    counts = [
        Counter(word for word in sentence.words if carries_meaning(word, language)) for sentence in document.sentences
    ]
    frequency = Counter(word for count in counts for word in count)
    vectors: list[dict[str, float]] = []
    for count in counts:
        vector = {word: n * math.log(1 + len(counts) / frequency[word]) for word, n in count.items()}
        norm = math.hypot(*vector.values())
        vectors.append({word: weight / norm for word, weight in vector.items()})
    return vectors


def spread(vectors: Sequence[dict[str, float]], scores: Sequence[float]) -> list[float]:
    """What each sentence receives when all pass on ``scores`` by likeness: ``V (Vᵀ scores)``, none to itself."""
    words: dict[str, float] = {}
    for vector, score in zip(vectors, scores, strict=True):
        for word, weight in vector.items():
            words[word] = words.get(word, 0.0) + weight * score
    return [
        max(sum(weight * words[word] for word, weight in vector.items()) - (score if vector else 0.0), 0.0)
        for vector, score in zip(vectors, scores, strict=True)
    ]


def normalize(values: Sequence[float]) -> list[float]:
    """``values`` scaled to sum to 1."""
    total = sum(values)
    return [value / total for value in values]


def overlap(one: set[str], other: set[str]) -> float:
    """The share of words that two sentences have in common (Jaccard), 0 to 1."""
    return len(one & other) / len(one | other)
