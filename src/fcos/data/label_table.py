"""Labels of formats whose annotations name the class of every box."""

from __future__ import annotations

from collections.abc import Sequence

from .source import Row


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

    def label(self, name: str | int) -> int:
        """Return the label of a class; a new class is added.

        A number is the position in the given class names, unless one of these is a number, too.
        """
        # JSON may hold lone surrogates (\udce9), which cannot be encoded.
        text = str(name).strip().encode("utf-8", "backslashreplace").decode()
        if text not in self._labels:
            if self._has_positions and _is_number(text) and int(text) < self._num_given:
                return int(text)
            self._labels[text] = len(self.names)
            self.names.append(text)
        return self._labels[text]

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
        """Category ids 1, 2, ... in label order."""
        return list(range(1, len(self.names) + 1))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10
