"""A closed, freezable dictionary with attribute access: the base of Options and of each of its groups.

Not a dataclass, because the error classes are part of poptorch's contract: an unknown public name is an
AssertionError, an unknown private one an AttributeError, a wrong type an AssertionError, and a frozen object an
AttributeError. Frozen is a state of one object: copies are free again.
"""

from __future__ import annotations

import copy
from typing import Any, Dict, List, Set, TypeVar

from ipu_trainer.simulator.logs import logger

_Self = TypeVar("_Self", bound="OptionsDict")


class OptionsDict:
    """Options declared by the constructor, which may be set to other values of the same type."""

    def __init__(self, **default_values: Any) -> None:
        self._warnings: Dict[str, str] = {}
        self._warnings_disabled: Set[str] = set()
        self._is_frozen = False
        self._values = default_values  # last: afterwards the object is closed

    def set(self, **kwargs: Any) -> Any:
        """Set declared options. Raises AssertionError for an unknown one or for a value of another type."""
        self.checkIsFrozen()
        for option, value in kwargs.items():
            assert self.exists(option), f"Invalid option {option}, valid options are {self._values.keys()}"
            expected = type(self._values[option])
            assert isinstance(value, expected), (
                f"Unexpected type {type(value)} for option {option}. Expected {expected}"
            )
            self._values[option] = value

    def createOrSet(self, **kwargs: Any) -> None:
        """Set options, declaring those that do not exist yet."""
        self.checkIsFrozen()
        for option, value in kwargs.items():
            if option in self._values:
                self.set(**{option: value})
            else:
                self._values[option] = value

    def _put(self: _Self, **kwargs: Any) -> _Self:
        """createOrSet() for setters, which return the object."""
        self.createOrSet(**kwargs)
        return self

    def exists(self, option: str) -> bool:
        """Whether the option is declared."""
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        """Remove an option."""
        self._values.pop(option, None)

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        """Add these options to `other`, which must have none of them, and return it."""
        for name, warning in self._warnings.items():
            if name not in self._warnings_disabled:
                logger.warning(warning)
        assert not set(self._values).intersection(other), "Can't merge dictionaries, they have some keys in common"
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        """The options as a plain dictionary."""
        return self.update({})

    def checkIsFrozen(self, option: Any = None) -> None:
        """Raise AttributeError if the object may not be changed any more."""
        if option != "_is_frozen" and self.__dict__.get("_is_frozen", False):
            raise AttributeError("Can't modify frozen Options")

    def _freeze(self) -> None:
        self._set_frozen(True)

    def _unfreeze(self) -> None:
        self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> None:
        self.__dict__["_is_frozen"] = frozen
        for value in list(self.__dict__.values()):
            if "_is_frozen" in getattr(value, "__dict__", {}):
                value.__dict__["_is_frozen"] = frozen

    def __deepcopy__(self, memo: Dict[int, Any]) -> Any:
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        for name, value in self.__dict__.items():
            duplicate.__dict__[name] = False if name == "_is_frozen" else copy.deepcopy(value, memo)
        return duplicate

    def __getstate__(self) -> Dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __setattr__(self, option: str, value: Any) -> None:
        if option == "__class__":  # PopDist replaces the groups' classes by subclasses
            object.__setattr__(self, option, value)
            return
        self.checkIsFrozen(option)
        if not option.startswith("_"):
            self.set(**{option: value})
            return
        if "_values" in self.__dict__ and option not in self.__dict__:
            raise AttributeError(f"Invalid private attribute {option}. Valid attributes: {list(self.__dict__)}")
        super().__setattr__(option, value)

    def __getattr__(self, option: str) -> Any:  # only called where normal look-up found nothing
        values = self.__dict__.get("_values", {})
        if option.startswith("_") or option not in values:
            raise AttributeError(f"Invalid attribute {option}.")
        return values[option]

    def __call__(self, option: str) -> Any:
        return getattr(self, option)

    def __repr__(self) -> str:
        private: List[str] = [f"{k}={v!r}" for k, v in self.__dict__.items() if k != "_values"]
        return f"{type(self).__name__}(" + ", ".join([f"{k}={v!r}" for k, v in self._values.items()] + private) + ")"
