"""From a YAML file to checked values: what all plans share, and how a mistake in one is told."""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from decoders.errors import UserError
from decoders.labels import Taxonomy


class Settings(BaseModel):
    """Base of all that a plan holds: unknown keys are refused, and no value is bent into another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _from_home(cls, value: Any) -> Any:
        """`~/photos` is where the shell would find it."""
        return value.expanduser() if isinstance(value, Path) and value.parts[:1] == ("~",) else value


AnySettings = TypeVar("AnySettings", bound=BaseModel)

PLANS: Mapping[str, str] = MappingProxyType(
    {
        "generate": "datagen.plan:GeneratePlan",
        "fit": "datagen.fit_plan:FitPlan",
        "adapt": "datagen.adaptation.adapt_plan:AdaptPlan",
        "control": "datagen.adaptation.control_plan:ControlPlan",
        "evaluate": "datagen.evaluation.evaluate_plan:EvaluatePlan",
    }
)
"""Verb -> the class of its plan."""
_IN_YAML: Mapping[str, str] = MappingProxyType(
    {
        "dict_type": "a mapping",
        "model_type": "a mapping",
        "list_type": "a list",
        "tuple_type": "a list",
        "string_type": "text",
        "bool_type": "true or false",
        "too_short": "{min_length} or more entries",
        "too_long": "{max_length} or fewer entries",
    }
)
"""What was expected, where pydantic's own words are those of JSON or Python."""
_TEXT = "tag:yaml.org,2002:str"
_INTEGER = "tag:yaml.org,2002:int"
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """YAML as people expect it: `5e-4` is a number, and a key given twice or a key that is no text is a mistake."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _MERGE:
                continue
            if key.tag == _INTEGER:
                key.tag = _TEXT  # as of a class: {7: road}
            if key.tag != _TEXT:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is no text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_settings(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The keys of a YAML file, with each override `key.sub=value` put in place; numbers in a key count entries from 0.

    Of what a run says about itself, they are those of the plan that it was made by. Keys are not checked here: that is
    `check`'s task, which then also sees what the overrides brought.

    Raises:
        UserError: the file is missing or no YAML mapping (names the line), or an override cannot be applied.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"cannot read plan {path}: {reason}; give the path of a YAML file") from None
    settings = _parse(text, f"plan {path}")
    if not isinstance(settings, dict):
        raise UserError(f"plan {path} holds {_kind(settings)}, expected `key: value` lines")
    if "digest" in settings and isinstance(settings.get("plan"), dict):  # written by datagen.runs
        settings = settings["plan"]
    for override in overrides:
        put(settings, override)
    return settings


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{line}: {error.problem}; expected valid YAML, correct it there") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError from what looks like a date and is none
        raise UserError(f"{where}: {error}; expected valid YAML, correct it there") from None


def put(settings: dict[str, Any], override: str) -> None:
    """Set the key that `key.sub=value` names.

    Raises:
        UserError: it is not of that form, or there is no such place.
    """
    key, equals, text = override.partition("=")
    steps = key.strip().split(".")
    if not equals or not all(steps):
        raise UserError(f"--set {override!r} is not of the form key.sub=value, as in --set generator.steps=30")
    value = _parse(text, f"--set {key}")
    place: Any = settings
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        so_far = ".".join(steps[: depth + 1])
        if isinstance(place, dict):
            if last:
                place[step] = value
            else:
                place[step] = _opened(place.get(step), steps[depth + 1], key=key, so_far=so_far)
                place = place[step]
        elif isinstance(place, list):
            if not step.isdecimal() or int(step) >= len(place):
                count = len(place)
                entries = f"entries 0 to {count - 1}" if count else "no entries"
                raise UserError(f"--set {key}: {so_far} is not there, the list has {entries}; number them from 0")
            if last:
                place[int(step)] = value
            else:
                place[int(step)] = _opened(place[int(step)], steps[depth + 1], key=key, so_far=so_far)
                place = place[int(step)]
        else:
            above = ".".join(steps[:depth])
            raise UserError(f"--set {key}: {above} is {_kind(place)} and has no key {step!r}; set {above} itself")


def _opened(place: Any, step: str, *, key: str, so_far: str) -> Any:
    """What stands at `so_far`, such that `step` can be set in it: words in a list are keys that say nothing more."""
    if place is None:  # what is not there yet may be optional; `check` refuses it if it is unknown
        if step.isdecimal():
            raise UserError(
                f"--set {key}: {so_far} is not in the plan, so it has no entry {step}; set {so_far} itself, to all "
                "that it is to hold"
            )
        return {}
    if isinstance(place, list) and step in place and all(isinstance(word, str) for word in place):
        return dict.fromkeys(place)
    return place


def check_plan(model: type[AnySettings], values: Mapping[str, Any], path: Path) -> AnySettings:
    """A whole plan, read from `path`, as an instance of its class.

    Raises:
        UserError: as `check`; but that it is the plan of another verb is told alone.
    """
    try:
        return check(model, values)
    except UserError:
        (verb,) = (verb for verb in PLANS if plan_class(verb) is model)
        if (other := _likely_verb(values.keys(), verb)) == verb:
            raise
        raise UserError(
            f"{path} looks like a plan of `datagen {other}`, expected one of `datagen {verb}`; run "
            f"`datagen {other} {path}`, or give another plan"
        ) from None


def _likely_verb(keys: Collection[str], verb: str) -> str:
    """Whose plan has these keys: `verb`, unless less than half as many are unknown to another one."""

    def unfit(verb: str) -> tuple[int, int]:
        fields = plan_class(verb).model_fields
        missing = [name for name, field in fields.items() if field.is_required() and name not in keys]
        return len(set(keys) - fields.keys()), len(missing)

    best = min(PLANS, key=unfit)
    return best if 2 * unfit(best)[0] < unfit(verb)[0] else verb


def plan_class(verb: str) -> type[BaseModel]:
    """Imported only now: a plan needs none of the others."""
    module, name = PLANS[verb].split(":")
    return getattr(import_module(module), name)


def check(
    model: type[AnySettings],
    values: Mapping[str, Any],
    *,
    at: str = "",
    extra_keys: Sequence[str] = (),
    where: str = "",
) -> AnySettings:
    """Values as an instance of `model`; `at` is where in the plan they stand.

    `extra_keys` are known to the caller though not to the model; they are only named in the list of known keys. `where`
    says behind that list what it depends on.

    Raises:
        UserError: one line per mistake, with its full key, what was found and what was expected.
    """
    try:
        # Through JSON, where strict means: text becomes a path and a list a tuple, but never text a number.
        as_json = json.dumps(values, default=str, ensure_ascii=False)
    except ValueError:
        raise UserError(f"{at or 'the plan'} holds itself, by an alias (*); write out what is meant") from None
    try:
        return model.model_validate_json(as_json)
    except ValidationError as error:
        by_place: dict[str, list[str]] = {}
        for details in error.errors(include_url=False):
            path = _path(values, details)
            by_place.setdefault(".".join([*filter(None, [at]), *map(str, path)]), []).append(
                _explain(model, details, path, extra_keys, where, values)
            )
        lines = [f"{place}: {' or '.join(dict.fromkeys(told))}" for place, told in by_place.items()]
        raise UserError("\n".join(lines)) from None


def filled_like(values: dict[str, Any], name: str, like: str) -> dict[str, Any]:
    """Settings in which the dataset under `name` has what it leaves out from that under `like`, if of one format."""
    if name not in values:
        return values
    return values | {name: filled(values[name], values.get(like))}


def filled(other: Any, data: Any) -> Any:
    """The settings of a dataset, and what they leave out from those of another, if of one format.

    Pictures chosen by name here are not chosen by the other's rule, nor the other way round.
    """
    if not isinstance(data, dict) or not isinstance(other, dict):
        return other
    if other.get("format", data.get("format")) != data.get("format"):
        return other
    passed_over: set[str] = {"first", "every"} if "names" in other else set()
    if other.keys() & {"first", "every"}:
        passed_over.add("names")
    return {key: value for key, value in data.items() if key not in passed_over} | other


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'steps'?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words)) or "none"


def check_classes(names: Iterable[str], taxonomy: Taxonomy, *, at: str) -> None:
    """Refuse names that are no classes; `at` is where they stand.

    Raises:
        UserError: names the first, the nearest class and all classes.
    """
    for name in names:
        if name not in taxonomy.names:
            raise UserError(
                f"{at}: {name!r} is no class{nearest(name, taxonomy.names) or ';'} classes: {listed(taxonomy.names)}"
            )


def _path(values: Any, details: ErrorDetails) -> list[str | int]:
    """Where the mistake is, in the user's own keys: pydantic also names the members of unions it tried."""
    path: list[str | int] = []
    last = len(details["loc"]) - 1
    for depth, step in enumerate(details["loc"]):
        try:
            values = values[step]
        except (KeyError, IndexError, TypeError):
            if not (details["type"] == "missing" and depth == last):
                continue
        path.append(step)
    return path


def _explain(
    model: type[BaseModel],
    details: ErrorDetails,
    path: Sequence[str | int],
    extra_keys: Sequence[str],
    where: str,
    values: Mapping[str, Any],
) -> str:
    if details["type"] == "extra_forbidden":
        key, outermost = str(path[-1]), len(path) == 1
        known = [*_known_keys(model, path[:-1]), *(extra_keys if outermost else ())]
        depends = f" ({where})" if outermost and where else ""
        further_in = [place for place in _places(values, key) if place != key] if outermost else []
        meant = f"; did you mean {further_in[0]!r}?" if further_in else nearest(key, known)
        return f"unknown key{meant or ';'} known keys: {listed(known)}{depends}"
    if details["type"] == "missing":
        return "missing; it has no default, so add it"
    message = _IN_YAML.get(details["type"], "").format(**details.get("ctx", {})) or details["msg"]
    for beginning in ("Input should be ", "Input should ", "Value error, "):
        message = message.removeprefix(beginning)
    return f"found {details['input']!r}, expected {message[:1].lower()}{message[1:]}"


def _places(values: Any, key: str, above: str = "") -> Iterator[str]:
    """Where in a plan a key stands, as `generator.steps`."""
    inner = values.items() if isinstance(values, Mapping) else enumerate(values) if isinstance(values, list) else ()
    for name, value in inner:
        place = f"{above}{name}"
        if name == key:
            yield place
        yield from _places(value, key, f"{place}.")


def _known_keys(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """The keys that `model` has at `path`."""
    here: list[Any] = [model]
    for step in path:
        below: list[Any] = []
        for annotation in here:
            if _is_model(annotation):
                below += [field.annotation for name, field in annotation.model_fields.items() if name == step]
            else:
                below += get_args(annotation)
        here = _members(below)
    return [name for annotation in here if _is_model(annotation) for name in annotation.model_fields]


def _members(annotations: Iterable[Any]) -> list[Any]:
    """The annotations, and what stands in their unions."""
    found: list[Any] = []
    for annotation in annotations:
        found.append(annotation)
        if not _is_model(annotation):
            found += _members(get_args(annotation))
    return found


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), f"the number {value}")
