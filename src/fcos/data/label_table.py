"""Labels of formats whose annotations name the class of every box."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Row
from .source import unused_ids
from .values import encodable, parse_integer


class LabelTable:
    """Class names in label order, filled while boxes are read.

    Args:
        class_names: given class names in label order; None: the names in the data, sorted when all boxes are read.

    Attributes:
        names: class names in label order.
    """

    def __init__(self, class_names: Sequence[str] | None) -> None:
        self.names = list(class_names or ())
        self._num_given = len(self.names)
        self._has_positions = not any(map(_is_number, self.names))
        self._labels = {name: label for label, name in enumerate(self.names)}
        self._ids: dict[str, int] = {}  # of the classes whose id the data states
        self._names_of_ids: dict[int, str] = {}

    def label(self, name: str | int, category_id: object = None) -> int:
        """Return the label of a class; a new class is added.

        A number is the position in the given class names, unless one of these is a number, too.

        Args:
            name: class name or number.
            category_id: id of the class in the data; None or empty: not stated.

        Raises:
            ValueError: the id is not an integer from 0 to 2^63 - 1, or ids and classes are not one-to-one.
        """
        text = encodable(str(name).strip())
        if text in self._labels:
            label = self._labels[text]
        elif self._has_positions and _is_number(text) and int(text) < self._num_given:
            label = int(text)
        else:
            label = self._labels[text] = len(self.names)
            self.names.append(text)
        if category_id not in (None, ""):
            self._set_id(self.names[label], category_id)
        return label

    def _set_id(self, name: str, category_id: object) -> None:
        try:
            number = parse_integer(category_id)
        except ValueError:
            number = -1
        if not 0 <= number < 2**63:
            raise ValueError(f"expected an integer from 0 on as id of class {name!r:.60}, found {category_id!r:.60}")
        if self._ids.get(name, number) != number:
            raise ValueError(
                f"class {name!r:.60} has the ids {self._ids[name]} and {number}; expected one id per class"
            )
        other = self._names_of_ids.get(number, name)
        if other != name:
            raise ValueError(f"the classes {other!r:.60} and {name!r:.60} have the same id {number}")
        self._ids[name], self._names_of_ids[number] = number, name

    def sort(self, rows: Sequence[Row]) -> list[Row]:
        """Sort the names that were not given, numbers by value, and return the rows with their new labels."""
        given, new = self.names[: self._num_given], self.names[self._num_given :]
        names = given + sorted(new, key=lambda name: (0, int(name), "") if _is_number(name) else (1, 0, name))
        position = {name: label for label, name in enumerate(names)}
        new_labels = [position[name] for name in self.names]
        self.names = names
        return [row._replace(label=new_labels[row.label]) for row in rows]

    @property
    def ids(self) -> list[int]:
        """Category ids in label order: as stated in the data, or else unused ones (1, 2, ...)."""
        unused = iter(unused_ids(self._ids.values(), len(self.names)))
        return [self._ids[name] if name in self._ids else next(unused) for name in self.names]


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10
