"""Every key that a plan may have, with its default and what it means: read off the code, so that it is always true.

Explanations are the docstrings: of a plan those under its fields, of a plug-in the `Args:` of its constructor.
"""

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt
from docstring_parser import DocstringStyle, parse, parse_from_object
from pydantic import BaseModel

from datagen.plugins import GIVEN, Group, OneOf, Part, find, kinds, settings_model, word_for_kind
from datagen.settings import PLANS, listed, nearest, plan_class
from decoders.errors import UserError
from decoders.tasks import find_task, task_names

TASKS = "tasks"
_WIDTH = 110
_PLAIN_TEXT = re.compile(r"[A-Za-z_][\w ./-]*")
"""What needs no quotes in YAML, the few words aside that mean something there."""
_Schema: TypeAlias = type[Any]
"""A pydantic model or a dataclass."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a plan, or of a part of one."""

    name: str
    """With the keys above it, as `--set` takes it: `fit.updates`, `loras.0.weight`."""
    default: str | None
    """As it would stand in a plan; None where it must be given."""
    takes: str
    says: str

    def __str__(self) -> str:
        head = f"{self.name}:" + ("" if self.default is None else f" {self.default}")
        need = "required; " if self.default is None else ""
        told = textwrap.fill(self.says, _WIDTH, initial_indent="    ", subsequent_indent="    ")
        return f"{head:36} # {need}{self.takes}" + (f"\n{told}" if told else "")


def topics() -> list[str]:
    """What can be asked about: verbs with a plan, groups of plug-ins, and the tasks of a reader."""
    return [*PLANS, *get_args(Group), TASKS]


def tell(topic: str | None = None, kind: str | None = None) -> str:
    """What there is to ask about; or the keys of a verb's plan; or the plug-ins of a group; or the keys of one of them.

    Raises:
        UserError: no such topic or kind.
    """
    if topic is None:
        groups = [f"  {name:12}{', '.join(_kinds(name))}" for name in topics() if name not in PLANS]
        return "\n".join(
            [
                f"of a plan: datagen keys PLAN, as in datagen keys fit: {', '.join(PLANS)}",
                "of a part of a plan: datagen keys GROUP KIND, as in datagen keys generators controlnet:",
                *groups,
            ]
        )
    if topic not in PLANS and kind is None:
        _require(topic, topics(), "topic")
        return "\n".join(f"{name:20}{_about(topic, name)}" for name in _kinds(topic))
    return "\n".join(map(str, keys(topic, kind))) or f"{kind} has no keys of its own"


def keys(topic: str, kind: str | None = None) -> list[Key]:
    """The keys of a verb's plan, or of a plug-in.

    Raises:
        UserError: no such topic or kind.
    """
    _require(topic, topics(), "topic")
    if topic in PLANS:
        if kind is not None:
            raise UserError(f"a plan of {topic} has no kinds, found {kind!r}; leave it out")
        return list(_keys(plan_class(topic), {}))
    kind = kind or ""
    if topic == TASKS or ":" not in kind:  # else it is a class of somebody's module
        _require(kind, _kinds(topic), "task" if topic == TASKS else word_for_kind(cast(Group, topic)))
    factory = _factory(topic, kind)
    given = ("trunk", "taxonomy") if topic == TASKS else GIVEN[cast(Group, topic)]
    return list(_keys(settings_model(factory, given=given), _arguments(factory)))


def _kinds(topic: Any) -> list[str]:
    return task_names() if topic == TASKS else kinds(topic)


def _factory(topic: Any, kind: str) -> type[Any]:
    return find_task(kind) if topic == TASKS else find(topic, kind, at=word_for_kind(topic))


def _require(word: str, known: Sequence[str], what: str) -> None:
    if word not in known:
        raise UserError(f"unknown {what} {word!r}{nearest(word, known) or ';'} known {what}s: {listed(known)}")


def _about(topic: Any, kind: str) -> str:
    """The first sentence, or why it cannot be used: one plug-in that is broken hides no other."""
    try:
        return _first_sentence(_factory(topic, kind))
    except UserError as error:
        return f"cannot be used: {error}"


def _first_sentence(factory: type[Any]) -> str:
    paragraph = " ".join((factory.__doc__ or "").strip().split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def _keys(schema: _Schema, said: Mapping[str, str], above: str = "") -> Iterator[Key]:
    said = {**_fields_said(schema), **said}
    for name, annotation, default in _fields(schema):
        inner = list(_schemas(annotation))
        yield Key(
            name=f"{above}{name}",
            default=None if default is ... else _shown(default),
            takes=_takes(annotation),
            says=_as_in_a_plan(said.get(name, "")),
        )
        for one, path in inner:
            yield from _keys(one, {}, f"{above}{name}.{path}")


def _as_in_a_plan(text: str) -> str:
    words = " ".join(text.replace("None", "null").split())
    return words[:1].upper() + words[1:]


def _fields(schema: _Schema) -> Iterator[tuple[str, Any, Any]]:
    """Name, type with its metadata, and default, ... where there is none."""
    if issubclass(schema, BaseModel):
        for name, field in schema.model_fields.items():
            annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            default = ... if field.is_required() else field.get_default(call_default_factory=True)
            yield name, annotation, default
        return
    hints = get_type_hints(schema, include_extras=True)
    for field in dataclasses.fields(schema):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        yield field.name, hints[field.name], ... if default is dataclasses.MISSING else default


def _fields_said(schema: _Schema) -> dict[str, str]:
    """The docstrings under the fields of a class and those that it is made from."""
    said: dict[str, str] = {}
    for one in reversed(schema.__mro__):
        if one.__module__.split(".")[0] not in ("pydantic", "builtins"):
            said |= {each.arg_name: each.description or "" for each in parse_from_object(one).params}
    return said


def _arguments(factory: type[Any]) -> dict[str, str]:
    """What the docstring of a constructor says of its arguments; several may share a line."""
    said: dict[str, str] = {}
    for one in reversed(factory.__mro__):
        if (text := getattr(vars(one).get("__init__"), "__doc__", None)) and one is not object:
            for each in parse(text, style=DocstringStyle.GOOGLE).params:
                said |= {name.strip(): each.description or "" for name in each.arg_name.split(",")}
    return said


def _schemas(annotation: Any) -> Iterator[tuple[_Schema, str]]:
    """What has keys of its own within a type, and by which step it is reached."""
    if _has_keys(annotation):
        yield annotation, ""
        return
    origin = get_origin(annotation)
    step = "0." if origin in (tuple, list, Sequence) else "NAME." if origin in (dict, Mapping) else ""
    if origin is not Literal:
        for part in dict.fromkeys(get_args(annotation)[: 1 if origin is Annotated else None]):
            yield from ((schema, step + path) for schema, path in _schemas(part))


def _has_keys(annotation: Any) -> bool:
    if not isinstance(annotation, type) or annotation is Part:
        return False
    return issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)


_PLAIN: Mapping[Any, str] = MappingProxyType(
    {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", NoneType: "null"}
)


def _takes(annotation: Any) -> str:
    """A type in words."""
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes_annotated(inside[0], inside[1:])
    if origin is Literal:
        return ", ".join(_shown(value) for value in inside)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_takes(part) for part in inside))
    if origin is tuple and ... not in inside:
        return f"[{', '.join(_takes(part) for part in inside)}]"
    if origin in (tuple, list, Sequence):
        return f"list of {_one(inside[0])}"
    if origin in (dict, Mapping):
        return f"mapping of {_one(inside[0])} to {_one(inside[1])}"
    if annotation is Part:
        return "a part, by its kind or format and its keys"
    return "the keys below" if _has_keys(annotation) else "anything"


def _one(annotation: Any) -> str:
    """Of a list or a mapping: in brackets where there is a choice."""
    words = _takes(annotation)
    return f"({words})" if " or " in words or ", " in words else words


def _takes_annotated(annotation: Any, metadata: Sequence[Any]) -> str:
    for entry in metadata:
        group = entry.group if isinstance(entry, OneOf) else _group_of(entry)
        if group is not None:
            several = "list of, each " if get_origin(annotation) is tuple else ""
            return f"{several}one of: datagen keys {group}" + (" or null" if type(None) in get_args(annotation) else "")
    limits: list[str] = []
    for entry in metadata:
        parts = entry if isinstance(entry, Interval) else [entry]
        for part in parts:
            for bound, sign in ((Ge, ">="), (Gt, ">"), (Le, "<="), (Lt, "<")):
                if isinstance(part, bound):
                    limits.append(f"{sign} {_shown(getattr(part, bound.__name__.lower()))}")
    return " ".join([_takes(annotation), " and ".join(limits)]).strip()


def _group_of(validator: Any) -> str | None:
    """The group that `partial(check, group, where)` chooses from, if the validator is one."""
    arguments = getattr(getattr(validator, "func", None), "args", ())
    return arguments[0] if arguments and arguments[0] in get_args(Group) else None


def _shown(value: Any) -> str:
    """As in YAML; empty where keys of its own say more."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if _has_keys(type(value)):
        return ""
    if isinstance(value, Part):
        return value.kind
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shown(each)}" for name, each in value.items()) + "}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) and not _PLAIN_TEXT.fullmatch(text) else text
