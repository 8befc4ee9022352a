"""Data classes that cost a program's start next to nothing.

``dataclasses`` writes the methods of each class as source and compiles it, and imports ``inspect`` and ``ast`` for
that: a third of the time in which an agent starts, and that is most of what a conversation of many servers costs; and a
fifth of the time in which a command starts (0.5 to 1.4 ms for each class, Python 3.11). This knows what lightship uses:
``frozen``, ``slots``, defaults and ``field``, ``asdict``, ``fields``, ``replace``. Type checkers take it for the real
one.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
    from dataclasses import is_dataclass as is_record
else:

    class FrozenInstanceError(AttributeError):
        """A record does not change."""

    _MISSING = object()
    _FIELDS = "__record_fields__"

    class Field:
        """What is known of a field."""

        __slots__ = ("default", "default_factory", "name", "repr")

        def __init__(self, default=_MISSING, default_factory=None, repr=True):
            self.name = ""
            self.default = default
            self.default_factory = default_factory
            self.repr = repr

    field = Field

    def fields(record):
        """The fields of a record or of its class, in their order."""
        return tuple(getattr(record, _FIELDS).values())

    def asdict(record):
        """The record as a dictionary, with all records in it."""
        return {name: _plain(getattr(record, name)) for name in getattr(record, _FIELDS)}

    def _plain(value):
        kind = type(value)
        if hasattr(kind, _FIELDS):
            return asdict(value)
        if kind is dict:
            return {_plain(key): _plain(one) for key, one in value.items()}
        if kind in (list, tuple, set, frozenset):
            return kind(_plain(one) for one in value)
        return value

    def replace(record, **changes):
        """Another record that differs in these fields."""
        return type(record)(**{**{name: getattr(record, name) for name in getattr(record, _FIELDS)}, **changes})

    def is_record(value):
        """Whether it is a record, and not the class of one."""
        return hasattr(type(value), _FIELDS)

    def dataclass(cls=None, *, frozen=False, slots=False):
        """Make a class of annotated fields a record."""

        def make(found):
            return _with_slots(_made(found, frozen)) if slots else _made(found, frozen)

        return make if cls is None else make(cls)

    def _with_slots(cls):
        """The class anew, with a place for each of its own fields: places cannot be given to a class that is there."""
        own = dict(cls.__dict__)
        names = tuple(getattr(cls, "__annotations__", {}))
        inherited = {name for base in cls.__mro__[1:] for name in getattr(base, "__slots__", ())}
        for name in (*names, "__dict__", "__weakref__"):
            own.pop(name, None)
        own["__slots__"] = tuple(name for name in names if name not in inherited)
        anew = type(cls)(cls.__name__, cls.__bases__, own)
        anew.__qualname__ = cls.__qualname__
        return anew

    def _made(cls, frozen):
        known = dict(getattr(cls, _FIELDS, {}))
        # As an attribute: from Python 3.14 on a class makes them when they are asked for.
        for name in getattr(cls, "__annotations__", {}):
            default = cls.__dict__.get(name, _MISSING)
            if default is _MISSING and name in known:
                continue  # an older Python answers with the base's
            known[name] = default if isinstance(default, Field) else Field(default)
            known[name].name = name
            if isinstance(default, Field):
                delattr(cls, name)
        setattr(cls, _FIELDS, known)
        names = cls.__match_args__ = tuple(known)
        for name, method in _methods(cls, known, names, frozen).items():
            if name not in cls.__dict__:
                setattr(cls, name, method)
        return cls

    def _methods(cls, known, names, frozen):
        checked = hasattr(cls, "__post_init__")
        count, keep = len(names), object.__setattr__

        def __init__(self, *args, **given):  # noqa: N807
            if len(args) > count:
                raise TypeError(f"{cls.__name__} has {count} fields, and {len(args)} were given")
            for name, value in zip(names, args):  # noqa: B905 (3.10)
                if name in given:
                    raise TypeError(f"{cls.__name__}: {name} was given twice")
                keep(self, name, value)
            for name in names[len(args) :]:
                keep(self, name, given.pop(name) if name in given else _default(cls, known[name]))
            if given:
                raise TypeError(f"{cls.__name__} has no field {next(iter(given))}")
            if checked:
                self.__post_init__()

        def __repr__(self):  # noqa: N807
            shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in names if known[name].repr)
            return f"{cls.__qualname__}({shown})"

        def __eq__(self, other):  # noqa: N807
            if type(other) is not type(self):
                return NotImplemented
            return _values(self, names) == _values(other, names)

        def __hash__(self):  # noqa: N807
            return hash(_values(self, names))

        def __setattr__(_self, name, _value):  # noqa: N807
            raise FrozenInstanceError(f"cannot assign to field {name!r}")

        def __delattr__(_self, name):  # noqa: N807
            raise FrozenInstanceError(f"cannot delete field {name!r}")

        made = {one.__name__: one for one in (__init__, __repr__, __eq__)}
        if frozen:
            return {**made, "__hash__": __hash__, "__setattr__": __setattr__, "__delattr__": __delattr__}
        return {**made, "__hash__": None}

    def _default(cls, known):
        if known.default_factory is not None:
            return known.default_factory()
        if known.default is _MISSING:
            raise TypeError(f"{cls.__name__}: {known.name} is missing")
        return known.default

    def _values(record, names):
        return tuple(getattr(record, name) for name in names)


__all__ = ["FrozenInstanceError", "asdict", "dataclass", "field", "fields", "is_record", "replace"]
