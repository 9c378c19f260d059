"""The package of CONTRIBUTING.md's example, installed as pip leaves it: a module and metadata."""

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moist.config import plugins, schema, unread
from moist.data.external import DATASETS
from moist.nets.cnn import STUDENTS, TEACHERS
from moist.nets.routers import ROUTERS
from moist.training.distillation import SOFT

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SECTION = TEXT.partition("## Add from another package\n")[2].partition("\n## ")[0]
PROJECT = tomllib.loads(re.findall(r"```toml\n(.*?)```", SECTION, re.DOTALL)[0])["project"]
[MODULE] = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
ADDED = {
    group.removeprefix("moist."): [*names] for group, names in PROJECT["entry-points"].items()
}


def install(
    site: Path,
    module: str = MODULE,
    *,
    name: str = "acme",
    version: str = PROJECT["version"],
    points: dict[str, dict[str, str]] = PROJECT["entry-points"],
) -> None:
    """Install a package of one module in a folder, replacing any other version of it."""
    info = site / f"{name}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (site / f"{name}.py").write_text(module)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{one} = {value}\n" for one, value in names.items())
        for group, names in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def forget() -> None:
    """Forget what was read of installed packages: no process sees that change but a test's."""
    importlib.invalidate_caches()
    for cached in (plugins.offered, schema.keys, unread.needed):
        cached.cache_clear()
    for registry in (ROUTERS, STUDENTS, TEACHERS, SOFT, DATASETS):
        registry.loaded.clear()
    for name in ("acme", "other"):
        sys.modules.pop(name, None)


@contextmanager
def installed(site: Path) -> Iterator[None]:
    """See the packages of a folder while the context lasts."""
    sys.path.insert(0, str(site))
    forget()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        forget()
