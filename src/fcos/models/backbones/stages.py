"""Base class of sequential backbones: freezing of the first stages, removal of the last ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from torch import Tensor, nn

from ..layers import freeze

STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}


class Stages(nn.Module, ABC):
    """Base class of backbones (see `Backbone`) that consist of a stem and one stage per map."""

    channels: dict[str, int]
    strides: dict[str, int]

    @abstractmethod
    def _stages(self) -> Mapping[str, Sequence[str]]:
        """Return the module paths of `stem` and of every map's stage, in execution order."""

    def truncate_after(self, level: str) -> None:
        """Remove the stages after the map `level`."""
        later = [name for name, stride in self.strides.items() if stride > self.strides[level]]
        stages = self._stages() if later else {}
        for name in later:
            for path in stages[name]:
                parent, _, key = path.rpartition(".")
                delattr(self.get_submodule(parent), key)
            del self.channels[name], self.strides[name]

    def _freeze(self, count: int, freeze_module: Callable[[nn.Module], nn.Module] = freeze) -> None:
        """Freeze the first `count` stages, including the stem; `freeze_module` returns a module's replacement."""
        if count:
            for path in chain.from_iterable(list(self._stages().values())[:count]):
                self.set_submodule(path, freeze_module(self.get_submodule(path)))

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        """Run the stages in sequence and return the output of each, except that of the stem."""
        maps, x, stages = {}, images, self._stages()
        for name in ("stem", *self.channels):
            for path in stages[name]:
                x = self.get_submodule(path)(x)
            maps[name] = x
        del maps["stem"]
        return maps
