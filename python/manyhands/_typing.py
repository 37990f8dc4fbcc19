"""What modules that every program imports use of `typing`, without its import.

That import is a tenth of the time of `import manyhands`, and nothing of it does any work when a
program runs: type checkers read the real names, programs get what stands in for them.
"""

__all__ = [
    "TYPE_CHECKING",
    "Any",
    "Generic",
    "NoReturn",
    "ParamSpec",
    "Self",
    "TypeVar",
    "cast",
    "dataclass_transform",
    "overload",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import (
        Any,
        Generic,
        NoReturn,
        ParamSpec,
        Self,
        TypeVar,
        cast,
        dataclass_transform,
        overload,
    )
else:
    from types import GenericAlias

    Any = NoReturn = Self = object

    class Generic:
        """A base of classes that can be subscripted, which `isinstance` does not see."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

    def TypeVar(name, *_constraints, **_how):
        return name

    ParamSpec = TypeVar

    def cast(_type, value):
        return value

    def dataclass_transform(**_how):
        return lambda cls: cls

    def overload(_function):
        return _function
