"""Studies: a driver draws trials, workers run them. `moist.study(NAME)` queries one."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moist.study.query import Study


class _Queryable(ModuleType):
    """This package, which is also the function `study` of the Python API: both have that name."""

    def __call__(self, name: str, **where: Any) -> "Study":
        from moist.study.query import study

        return study(name, **where)


sys.modules[__name__].__class__ = _Queryable
