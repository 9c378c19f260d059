"""Files: where to put one, and where to get it."""

from __future__ import annotations

import mimetypes
from base64 import b64encode
from dataclasses import dataclass
from hashlib import md5
from typing import Any

from wandb_standin.records import now
from wandb_standin.state import State


@dataclass(frozen=True)
class File:
    """A file in a box of bytes: where to put it, and where to get it."""

    state: State
    box: dict[str, bytes]
    name: str
    artifact: Any = None
    upload_headers: tuple[str, ...] = ()
    upload_multipart_urls: None = None
    updated_at: str = now()

    def __getattr__(self, key: str) -> Any:
        if key in {"upload_url", "direct_url"}:
            return self.state.url(self.box, self.name)
        if key in {"id", "display_name", "storage_path"}:
            return self.name
        if key == "size_bytes":
            return len(self.box[self.name])
        if key in {"md5", "digest"}:
            return b64encode(md5(self.box[self.name]).digest()).decode()
        if key == "mimetype":
            return mimetypes.guess_type(self.name)[0]
        raise AttributeError(key)
