r"""The filter grammar of searches: `label = "dog" and duration > 5`, parsed once into plain data.

Contract: text in, a Filter out, which a store compiles to its own language, or asks row by row with `matches`.
ValueError, with the position, for text outside the grammar:

    filter      = term { "or" term }
    term        = factor { "and" factor }
    factor      = "not" factor | "(" filter ")" | column operator value | column [ "not" ] "in" "(" values ")"
    values      = value { "," value }
    operator    = "=" | "!=" | "<" | "<=" | ">" | ">="
    value       = "text" | 'text' | number | true | false

In quoted text a backslash takes the next character literally: "say \"hi\"", "a\\b". A row that has no value in a column
fails every comparison with it, != and "not in" too. "not" negates the outcome: `not label = "dog"` holds for a row
without a label, `label != "dog"` does not. Knows nothing of any store.
"""

from __future__ import annotations

import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipvid.config import checks

Value = str | float | int | bool
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
"""Operators of a comparison."""
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<word>[^\W\d]\w*)
      | (?P<operator><=|>=|!=|=|<|>)
      | (?P<mark>[(),])
    )""",
    re.VERBOSE | re.DOTALL,
)
COLUMNS = ("path", "label")
"""Columns of a `VideoIndex`."""
_WORDS = ("and", "or", "not", "in", "true", "false")
_DEPTH = 50
"""Deepest nesting of a filter; a deeper one could exhaust Python's stack."""


class Filter(ABC):
    """Condition on the metadata of a row; one of Compare, OneOf, Not, Both and Either."""

    @abstractmethod
    def matches(self, row: Mapping[str, Any]) -> bool:
        """Return True if a row of metadata fulfils the condition.

        Raises ValueError for a column whose value has another type than the condition's.
        """


@dataclass(frozen=True)
class Compare(Filter):
    """Comparison of a column with a value."""

    column: str
    operator: str
    """A key of `OPERATORS`."""
    value: Value

    def matches(self, row: Mapping[str, Any]) -> bool:
        value = row.get(self.column)
        return value is not None and OPERATORS[self.operator](_same_type(self.column, value, self.value), self.value)


@dataclass(frozen=True)
class OneOf(Filter):
    """Membership of a column's value in a list, or with `negated` its absence."""

    column: str
    values: tuple[Value, ...]
    negated: bool = False

    def matches(self, row: Mapping[str, Any]) -> bool:
        value = row.get(self.column)
        if value is None:
            return False
        return any(_same_type(self.column, value, each) == each for each in self.values) is not self.negated


@dataclass(frozen=True)
class Not(Filter):
    """Negation of a filter."""

    part: Filter

    def matches(self, row: Mapping[str, Any]) -> bool:
        return not self.part.matches(row)


@dataclass(frozen=True)
class Both(Filter):
    """Conjunction of two or more filters."""

    parts: tuple[Filter, ...]

    def matches(self, row: Mapping[str, Any]) -> bool:
        return all(part.matches(row) for part in self.parts)


@dataclass(frozen=True)
class Either(Filter):
    """Disjunction of two or more filters."""

    parts: tuple[Filter, ...]

    def matches(self, row: Mapping[str, Any]) -> bool:
        return any(part.matches(row) for part in self.parts)


def parse(text: str, columns: Sequence[str] = ()) -> Filter:
    """Return the filter that a text describes; raise ValueError, with the position, for text outside the grammar.

    A column that is not among `columns` is an error too, if any are given: it would silently match nothing.
    """
    checks.text("where", text, advice="write a filter such as 'label = \"dog\"'")
    parser = _Parser(text, columns)
    condition = parser.either(0)
    if parser.token is not None:
        parser.refuse("and, or, or the end")
    return condition


def with_values(condition: Filter, column: str, change: Callable[[Value], Value]) -> Filter:
    """Return a filter in which every value that a column is compared with is changed."""
    match condition:
        case Compare(name) if name == column:
            return replace(condition, value=change(condition.value))
        case OneOf(name, values) if name == column:
            return replace(condition, values=tuple(map(change, values)))
        case Not(part):
            return Not(with_values(part, column, change))
        case Both(parts) | Either(parts):
            return replace(condition, parts=tuple(with_values(part, column, change) for part in parts))
        case _:
            return condition


def columns_of(condition: Filter) -> set[str]:
    """Return the names of the columns that a filter compares."""
    match condition:
        case Compare(column) | OneOf(column):
            return {column}
        case Not(part):
            return columns_of(part)
        case Both(parts) | Either(parts):
            return {column for part in parts for column in columns_of(part)}
        case _:
            return set()


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


class _Parser:
    """Recursive descent over the tokens of a filter."""

    def __init__(self, text: str, columns: Sequence[str] = ()) -> None:
        self.text, self.columns = text, columns
        self.tokens = _tokens(text)
        self.next = 0

    @property
    def token(self) -> _Token | None:
        return self.tokens[self.next] if self.next < len(self.tokens) else None

    def refuse(self, expected: str) -> None:
        """Raise ValueError for the token that was read, with the tokens that may stand there."""
        got = "the end" if self.token is None else f"{self.token.text!r} at character {self.token.position + 1}"
        raise ValueError(
            f"filter {self.text!r} has {got} where {expected} must be; an example is "
            + ('label = "dog"' if self.columns else 'label = "dog" and duration > 5')
        )

    def takes(self, *texts: str) -> str | None:
        """Return and pass the current token if it is one of these words or marks, else return None."""
        token = self.token
        if token is None or token.kind == "text" or token.text.lower() not in texts:
            return None
        self.next += 1
        return token.text.lower()

    def expect(self, text: str) -> None:
        if self.takes(text) is None:
            self.refuse(repr(text))

    def either(self, depth: int) -> Filter:
        parts = [self.both(depth)]
        while self.takes("or"):
            parts.append(self.both(depth))
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def both(self, depth: int) -> Filter:
        parts = [self.factor(depth)]
        while self.takes("and"):
            parts.append(self.factor(depth))
        return parts[0] if len(parts) == 1 else Both(tuple(parts))

    def factor(self, depth: int) -> Filter:
        if depth > _DEPTH:
            raise ValueError(f"a filter must be nested at most {_DEPTH} deep; write it with fewer brackets")
        if self.takes("not"):
            return Not(self.factor(depth + 1))
        if self.takes("("):
            condition = self.either(depth + 1)
            self.expect(")")
            return condition
        column = self.column()
        negated = self.takes("not") is not None
        if self.takes("in"):
            return OneOf(column, self.values(), negated)
        sign = None if negated else self.takes(*OPERATORS)
        if sign is None:
            self.refuse("'in'" if negated else f"one of {' '.join(OPERATORS)} or in")
        return Compare(column, str(sign), self.value())

    def column(self) -> str:
        token = self.token
        if token is None or token.kind != "word" or token.text.lower() in _WORDS:
            self.refuse("the name of a column")
        assert token is not None
        if self.columns and token.text not in self.columns:
            raise ValueError(
                f"filter {self.text!r} must name columns of {', '.join(self.columns)}, got {token.text!r} at character "
                f"{token.position + 1}; correct it"
            )
        self.next += 1
        return token.text

    def values(self) -> tuple[Value, ...]:
        self.expect("(")
        values = [self.value()]
        while self.takes(","):
            values.append(self.value())
        self.expect(")")
        return tuple(values)

    def value(self) -> Value:
        if truth := self.takes("true", "false"):
            return truth == "true"
        token = self.token
        if token is None or token.kind not in ("text", "number"):
            self.refuse('a value ("text", a number, true or false)')
        assert token is not None
        self.next += 1
        if token.kind == "text":
            return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)
        return float(token.text) if set(token.text) & set(".eE") else int(token.text)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            rest = text[position:].lstrip()
            raise ValueError(
                f"filter {text!r} has {rest[0]!r} at character {len(text) - len(rest) + 1}, which no column, operator "
                "or value begins with; put text in quotes"
            )
        kind = str(match.lastgroup)
        tokens.append(_Token(kind, match[kind], match.start(kind)))
        position = match.end()
    return tokens


def _same_type(column: str, value: Any, compared: Value) -> Any:
    """Return `value`; raise ValueError if it cannot be compared with the value in the filter."""
    kinds: Sequence[Any] = (bool, (int, float), str)
    if not any(
        isinstance(value, kind) and isinstance(compared, kind) and isinstance(value, bool) is isinstance(compared, bool)
        for kind in kinds
    ):
        raise ValueError(
            f"column {column} holds {type(value).__name__} ({value!r}), which cannot be compared with {compared!r}; "
            f"give a {type(value).__name__}"
        )
    return value
