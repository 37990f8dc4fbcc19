"""Values that do not change."""

from __future__ import annotations

from manyhands._typing import Any, NoReturn, dataclass_transform


# Named tuples and dataclasses, which would do here, each take a millisecond of the import.
@dataclass_transform(frozen_default=True, kw_only_default=True)
class Snapshot:
    """Values at one moment, by name; they do not change."""

    # Names, each with what it means, which help() shows.
    __slots__: dict[str, str] = {}

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self.__slots__):
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self.__slots__)}")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is a snapshot: {name} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is a snapshot: {name} cannot be deleted")

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), {name: getattr(self, name) for name in self.__slots__}))


def _rebuild(kind: type[Snapshot], values: dict[str, Any]) -> Snapshot:
    return kind(**values)
