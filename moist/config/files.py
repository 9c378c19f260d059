"""Files of values and sweep files: where a name is looked for, and how YAML is read.

The files of sweeps/ come with moist. In a checkout they are the repository's, in an installed
package they lie in `moist/sweeps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from moist.disk import expanded
from moist.errors import ConfigError, did_you_mean

FOLDER = "sweeps"
PACKAGE = Path(__file__).parents[1]


def packaged() -> dict[str, Path]:
    """Return the sweep files that come with moist, by name."""
    inside = PACKAGE / FOLDER
    folder = inside if inside.is_dir() else PACKAGE.parent / FOLDER
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def locate(name: str, beside: Path | None = None) -> Path:
    """Return the file that a name stands for; `beside` is the sweep file that includes it.

    A relative path is looked for in the working folder, then in the folder of `beside`, then in
    that folder's parent: `sweeps/short.yaml` in a file of sweeps/ is found from any working
    folder. If it is in none of them, `sweeps/NAME.yaml` and a bare `NAME` are files that come with
    moist. Raises ConfigError if there is no such file, with the places it was looked for in, and
    if several places have different files of that name.
    """
    if (path := expanded(Path(name))).is_absolute():
        return path
    folders = [Path(), *([beside.parent, beside.parent.parent] if beside else [])]
    places = [folder / name for folder in folders]
    found = [path for path in places if path.exists() and not path.is_dir()]  # a pipe, too
    if len({path.resolve() for path in found}) > 1 and len({p.read_bytes() for p in found}) > 1:
        listed = " and ".join(f"`{path.resolve()}`" for path in found)
        raise ConfigError(
            f"`{name}` is ambiguous: {listed} differ", "rename one, or give its absolute path"
        )
    if own := found[0] if found else _packaged(name):
        return own
    listed = ", ".join(dict.fromkeys(f"`{folder.resolve()}`" for folder in folders))
    raise ConfigError(
        f"can't find `{name}` in {listed}, nor among the files that come with moist",
        did_you_mean(
            Path(name).stem, packaged(), f"`moist sweep list` shows them: {', '.join(packaged())}"
        ),
    )


def _packaged(name: str) -> Path | None:
    """Return the file that comes with moist as `NAME` or `sweeps/NAME.yaml`, if there is one."""
    if _is_bare(name):
        return packaged().get(name)
    path = Path(name)
    own = path.parent == Path(FOLDER) and path.suffix == ".yaml"
    return packaged().get(path.stem) if own else None


def _is_bare(name: str) -> bool:
    return name == Path(name).stem


class Word(str):
    """A scalar as it is written; `seen` is the value that YAML 1.1, and so W&B, reads from it."""

    seen: Any


class _Words(yaml.SafeLoader):
    """A loader of what W&B reads, tags, anchors and merge keys included, with scalars as `Word`s.

    It rejects a key that is given twice in a mapping, of which W&B would use the last.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.MarkedYAMLError(
                    None, None, f"`{key.value}` is given twice", key.start_mark
                )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep=True)  # rejects what holds itself
        word = Word(node.value)
        try:
            word.seen = super().construct_object(node, deep)
        except (AttributeError, KeyError, ValueError):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            problem = f"`{node.value}` is no {tag}"
            raise yaml.MarkedYAMLError(None, None, problem, node.start_mark) from None
        return word


def document(path: Path) -> Any:
    """Return the content of a YAML file, its scalars as `Word`s: text, as on the command line.

    YAML would read `1e-4` as text and `no` as False. Raises ConfigError if it can't be read.
    """
    try:
        return words(path.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"can't read `{path}`: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>",', "in").split())
        raise ConfigError(f"`{path}` is not YAML: {reason}") from None
    except RecursionError:
        raise ConfigError(f"`{path}` is nested too deeply to be read") from None


def words(text: str) -> Any:
    """Return the content of a YAML text, its scalars as `Word`s. Raises YAMLError."""
    return yaml.load(text, Loader=_Words)


def flattened(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep's entries by dotted name: W&B nests them as `distill: {parameters: ...}`.

    Raises ConfigError for a name that is given both ways.
    """
    found: dict[str, Any] = {}
    for name, entry in parameters.items():
        nested = entry.get("parameters") if isinstance(entry, dict) and len(entry) == 1 else None
        inner = {name: entry}
        if isinstance(nested, dict) and nested:
            inner = {f"{name}.{leaf}": one for leaf, one in flattened(nested).items()}
        if twice := found.keys() & inner.keys():
            raise ConfigError(f"`{min(twice)}` is given twice, nested and by its dotted name")
        found |= inner
    return found


def included(content: Mapping[str, Any]) -> list[str]:
    """Return the `@FILE` and `KEY=VALUE` words of a sweep's `command`.

    They are what W&B's agent passes on to `moist run` before the parameters, which win therefore.
    """
    command = content.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    after = words[words.index("run") + 1 :] if "run" in words else []
    return [word for word in after if word[:1] == "@" or ("=" in word and word[:1] not in "-$")]
