"""How a plan names the parts of the factory, and how others add theirs.

A plug-in is a plain class with keyword-only arguments. `{kind: stable_diffusion, steps: 30}` under `generator:` means
`StableDiffusion(steps=30)` of `datagen/generators/stable_diffusion.py`, or the class that a Python entry point of that
name in the group `datagen.generators` refers to. Types and defaults of `__init__` are the schema, where `Annotated[int,
Ge(1)]` bounds a number. `{kind: my_module:MyFilter}` takes the class of a module in the current folder, or of any that
can be imported. Arguments with the names below are no settings; the factory gives them to whoever asks:

    seed        int          the run's seed                                    sources
    taxonomy    Taxonomy     the classes of the labels                         all but exporters and datasets
    model       Model        the plan's checkpoint, loaded on first use        conditions, generators, labellers

Of a dataset, the word is `format`: `data: {format: coco, root: photos}`.

A source that brings labels has a `taxonomy` of its own, which is then what the other parts are given; else it is the
labeller's. A part may hold another one: `data: Annotated[AnnotatedImages, OneOf("datasets", at="source.data")]`.

A constructor checks its settings and may read small files; weights load at the first picture, so that a mistake in a
plan is told before anything slow begins. A part that reads files publishes their sha256 as `digest`: then they decide
the run, not their paths.
"""

import hashlib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, PydanticUserError, create_model
from pydantic_core import core_schema

from datagen.settings import Settings, check, listed, nearest
from decoders.errors import UserError

Group = Literal["sources", "conditions", "generators", "labellers", "filters", "exporters", "datasets", "students"]

GIVEN: Mapping[Group, tuple[str, ...]] = MappingProxyType(
    {
        "sources": ("seed", "taxonomy"),
        "conditions": ("model", "taxonomy"),
        "generators": ("model", "taxonomy"),
        "labellers": ("model", "taxonomy"),
        "filters": ("taxonomy",),
        "exporters": (),
        "datasets": (),
        "students": ("taxonomy",),
    }
)

METHOD: Mapping[Group, str] = MappingProxyType(
    {
        "sources": "recipe",
        "conditions": "draw",
        "generators": "render",
        "labellers": "label",
        "filters": "judge",
        "exporters": "export",
        "datasets": "__getitem__",
        "students": "loss",
    }
)
"""By which a class is told to be of the group."""
_IN_MODULE = ":"
"""Between module and class of a kind that is no name of a file or an entry point."""


def word_for_kind(group: Group) -> str:
    """The key under which a plan names the plug-in; everybody says that a dataset has a format."""
    return "format" if group == "datasets" else "kind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A plug-in that a plan chose, its settings checked: everything but the construction."""

    group: Group
    kind: str
    factory: type[Any]
    settings: BaseModel
    at: str
    """Where in the plan it stands, as in `filters.0`."""

    def build(self, **given: Any) -> Any:
        """Construct it, and first the parts it holds; of `given` each gets what its `__init__` asks for by name.

        Raises:
            UserError: from the constructor, with the place in the plan put in front.
        """
        arguments = {name: built(value, **given) for name, value in self.values().items()}
        for name, parameter in inspect.signature(self.factory).parameters.items():
            if name in GIVEN[self.group] and name in given:
                arguments[name] = given[name]
            elif name not in arguments and parameter.default is parameter.empty:
                raise UserError(f"{self.at}: {self.kind} needs a {name}, found none in the plan; add `{name}:` to it")
        try:
            return self.factory(**arguments)
        except UserError as error:
            raise UserError(f"{self.at}: {error}") from None

    def asks_for(self, name: str) -> bool:
        """Whether its constructor takes the given argument of this name."""
        return name in GIVEN[self.group] and name in inspect.signature(self.factory).parameters

    def prepare(self) -> None:
        """Let the plug-in make the files it needs, where it has a `prepare`; takes as long as that takes."""
        prepare = getattr(self.factory, "prepare", None)
        if prepare is not None:
            prepare(**self.values())

    def values(self) -> dict[str, Any]:
        """The settings as the constructor takes them."""
        return {name: getattr(self.settings, name) for name in type(self.settings).model_fields}

    def to_json(self) -> dict[str, Any]:
        """Kind and settings as plain JSON values, defaults included."""
        return {word_for_kind(self.group): self.kind, **self.settings.model_dump(mode="json")}

    def decisive(self) -> dict[str, Any]:
        """As `to_json`, with the sha256 of the module that a plan takes the class from: edited, it is another part."""
        told = self.to_json()
        if _IN_MODULE in self.kind:
            told["code"] = hashlib.sha256(Path(inspect.getfile(self.factory)).read_bytes()).hexdigest()
        return told

    @property
    def path_settings(self) -> frozenset[str]:
        """Names of the settings that are paths, given or not, or hold some: what the part's `digest` speaks for."""
        fields = type(self.settings).model_fields.items()
        return frozenset(
            name
            for name, field in fields
            if Path in (field.annotation, *get_args(field.annotation))
            or any(isinstance(entry, OneOf) or entry is HOLDS_PATHS for entry in field.metadata)
        )


HOLDS_PATHS = object()
"""Metadata of the type of a setting that has paths inside, and that the part's `digest` speaks for as a whole."""


def built(value: Any, **given: Any) -> Any:
    """The value itself, or what it stands for if it is a part that a plan chose."""
    return value.build(**given) if isinstance(value, Part) else value


@dataclass(frozen=True, slots=True)
class OneOf:
    """Metadata of a type: in a plan, `{kind: ..., setting: ...}` of the group; in Python, the finished object.

    Beside `Part | None`, nothing given is None.
    """

    group: Group
    at: str
    """Where in the plan it stands, for messages."""

    def __get_pydantic_core_schema__(self, source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            partial(self._choose, optional=NoneType in get_args(source)),
            serialization=core_schema.plain_serializer_function_ser_schema(_part_to_json),
        )

    def _choose(self, value: Any, *, optional: bool) -> Any:
        if value is None and optional:
            return None
        plain = value is None or isinstance(value, str | dict | list | int | float)
        return choose_part(self.group, value, at=self.at) if plain else value


def _part_to_json(value: Any) -> Any:
    return value.to_json() if isinstance(value, Part) else value if value is None else repr(value)


def choose_part(group: Group, values: Any, *, at: str) -> Part:
    """The part that `{kind: ..., setting: ...}` asks for; a bare word is a kind without settings.

    Raises:
        UserError: unknown kind, unknown key, wrong type: names the full key, what was found and what was expected.
    """
    word = word_for_kind(group)
    values = {word: values} if isinstance(values, str) else values
    if not isinstance(values, dict) or not isinstance(values.get(word), str):
        raise UserError(
            f"{at}: found {values!r}, expected `{word}:` and its settings; known {word}s: {listed(kinds(group))}"
        )
    settings = {name: value for name, value in values.items() if name != word}
    factory = find(group, values[word], at=f"{at}.{word}")
    schema = settings_model(factory, given=GIVEN[group])
    checked = check(schema, settings, at=at, extra_keys=[word], where=f"`{word}` is {values[word]}")
    return Part(group=group, kind=values[word], factory=factory, settings=checked, at=at)


def find(group: Group, kind: str, *, at: str) -> type[Any]:
    """The class behind a kind; the project's own come first, so that nobody replaces one unseen.

    Raises:
        UserError: there is none, its module does not load, or it is no plug-in of the group.
    """
    if _IN_MODULE in kind:
        return _from_module(group, kind, at)
    known = dict(_known(group))
    if kind not in known:
        word = word_for_kind(group)
        raise UserError(
            f"{at}: unknown {word} {kind!r}{nearest(kind, known) or ';'} known {word}s: {listed(known)}; a class of "
            "yours is named as module:Class"
        )
    return known[kind]()


def kinds(group: Group) -> list[str]:
    return sorted(dict(_known(group)))


def _known(group: Group) -> Iterator[tuple[str, Any]]:
    """Each kind with the function that imports its class; of equal kinds the last one counts."""
    outside: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"datagen.{group}"):
        other = outside.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise UserError(
                f"two installed packages offer the kind {entry.name!r} in datagen.{group}: {other.value} and "
                f"{entry.value}; uninstall one"
            )
        yield entry.name, partial(_from_outside, group, entry)
    package = importlib.import_module(f"datagen.{group}")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            yield module.name, partial(_from_folder, group, module.name)


def _from_folder(group: Group, kind: str) -> type[Any]:
    module = importlib.import_module(f"datagen.{group}.{kind}")
    return getattr(module, "".join(word.capitalize() for word in kind.split("_")))


def _from_outside(group: Group, entry: EntryPoint) -> type[Any]:
    named = f"the installed plug-in {entry.name!r} ({entry.value})"
    try:
        factory = entry.load()
    except Exception as error:  # whatever somebody's module does while it is imported
        raise UserError(f"{named} does not load: {error}; repair or uninstall it") from error
    return _require_plugin(group, factory, named)


def _from_module(group: Group, kind: str, at: str) -> type[Any]:
    module_name, _, class_name = kind.partition(_IN_MODULE)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: no file here replaces what is installed
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # as above
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{at}: no module {module_name!r} in {here} or installed; run the command in the folder of its file, "
                "or correct the name"
            ) from None
        raise UserError(
            f"{at}: the module {module_name!r} does not load ({type(error).__name__}: {error}); repair it"
        ) from error
    factory = getattr(module, class_name, None)
    if not isinstance(factory, type):
        classes = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name]
        raise UserError(
            f"{at}: {module.__file__} has no class {class_name!r}{nearest(class_name, classes) or ';'} it has: "
            f"{listed(classes)}"
        )
    return _require_plugin(group, factory, f"{at}: {kind}")


def _require_plugin(group: Group, factory: type[Any], named: str) -> type[Any]:
    try:
        settings_model(factory, given=GIVEN[group])
    except (TypeError, NameError, PydanticUserError) as error:
        raise UserError(f"{named} is no plug-in: {error}") from error
    if not hasattr(factory, METHOD[group]):
        raise UserError(f"{named} is none of the {group}: it has no method {METHOD[group]!r}; add it, or name another")
    return factory


def settings_model(factory: type[Any], *, given: tuple[str, ...]) -> type[BaseModel]:
    """A pydantic model of the keyword arguments of a class, without those that are given.

    Raises:
        TypeError: the class is no plug-in: an argument without a type, a positional-only one, or `**kwargs`.
    """
    hints = get_type_hints(factory.__init__, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in given:
            continue
        if parameter.kind is not parameter.KEYWORD_ONLY or name not in hints:
            raise TypeError(
                f"{factory.__qualname__}: argument {name!r} of a plug-in must be keyword-only and have a type"
            )
        fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    return create_model(factory.__name__, __base__=Settings, **fields)
