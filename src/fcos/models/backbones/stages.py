"""What networks that run stage after stage have in common: freezing the first ones, leaving out the last ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from torch import Tensor, nn

from ..layers import freeze

STRIDES = {"C2": 4, "C3": 8, "C4": 16, "C5": 32}


class Stages(nn.Module, ABC):
    """A backbone (see `Backbone`) made of a stem and a stage for each of its maps."""

    channels: dict[str, int]
    strides: dict[str, int]

    @abstractmethod
    def _stages(self) -> Mapping[str, Sequence[str]]:
        """Paths of the modules of `stem` and of every map's stage, in the order in which they run."""

    def truncate_after(self, level: str) -> None:
        """Remove the stages after a map."""
        later = [name for name, stride in self.strides.items() if stride > self.strides[level]]
        stages = self._stages() if later else {}
        for name in later:
            for path in stages[name]:
                parent, _, key = path.rpartition(".")
                delattr(self.get_submodule(parent), key)
            del self.channels[name], self.strides[name]

    def _freeze(self, count: int, how: Callable[[nn.Module], nn.Module] = freeze) -> None:
        """Stop the first stages (the stem is one) from learning."""
        if count:
            for path in chain.from_iterable(list(self._stages().values())[:count]):
                self.set_submodule(path, how(self.get_submodule(path)))

    def _maps(self, images: Tensor) -> dict[str, Tensor]:
        """What every stage gives to the next one."""
        maps, x, stages = {}, images, self._stages()
        for name in ("stem", *self.channels):
            for path in stages[name]:
                x = self.get_submodule(path)(x)
            maps[name] = x
        del maps["stem"]
        return maps
