"""Files of values and sweep files: where a name is looked for, and how YAML is read.

The files of sweeps/ come with moist. In a checkout they are the repository's, in an installed
package they lie in `moist/sweeps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

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
    if Path(name).is_absolute():
        return Path(name)
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


class _Words(yaml.BaseLoader):
    """A loader that keeps scalars as text and rejects a key that is given twice."""

    def construct_scalar(self, node: yaml.ScalarNode) -> Word:
        word = Word(super().construct_scalar(node))
        word.seen = str(word) if node.style else yaml.safe_load(node.value)
        return word

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        for number, (key, _) in enumerate(node.value):
            if key.value in names[:number]:
                raise yaml.MarkedYAMLError(
                    None, None, f"`{key.value}` is given twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def document(path: Path) -> Any:
    """Return the content of a YAML file, its scalars as `Word`s: text, as on the command line.

    YAML would read `1e-4` as text and `no` as False. Raises ConfigError if it can't be read.
    """
    try:
        return yaml.load(path.read_text(), Loader=_Words)
    except OSError as error:
        raise ConfigError(f"can't read `{path}`: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>",', "in").split())
        raise ConfigError(f"`{path}` is not YAML: {reason}") from None


def included(content: Mapping[str, Any]) -> list[str]:
    """Return the `@FILE` and `KEY=VALUE` words of a sweep's `command`.

    They are what W&B's agent passes on to `moist run` before the parameters, which win therefore.
    """
    command = content.get("command")
    words = [str(word) for word in command] if isinstance(command, list) else []
    after = words[words.index("run") + 1 :] if "run" in words else []
    return [word for word in after if word[:1] == "@" or ("=" in word and word[:1] not in "-$")]
