"""Foreign text in Markdown: names of files and classes, links, and errors that quote them."""

from __future__ import annotations

import re

from app.options import one_line

_PUNCTUATION = re.compile(r"[\\`*_{}\[\]<>#!|$~&@]|:(?=\S)")
_ITEM = re.compile(r"^(\d*)([-+=.)])")
# What is looked for after Markdown has been read, where no backslash helps: names of signs
# between two colons, addresses, arrows.
_SIGN = re.compile(r":(?=[\w+/-]+:|//)|@(?=\w)|\bwww(?=\.)|<(?=-)|-(?=[->])", re.IGNORECASE)
_JOINER = "\u2060"


def plain(text: str | BaseException) -> str:
    """Write foreign text so that Markdown shows it as it is, on one line.

    Without this a link into the page could show a picture from another server, say.

    Args:
        text: What somebody else chose to write, or an error that may quote it.
    """
    words = one_line(text) if isinstance(text, BaseException) else " ".join(text.split())
    split = _SIGN.sub(rf"\g<0>{_JOINER}", words)
    return _ITEM.sub(r"\1\\\2", _PUNCTUATION.sub(r"\\\g<0>", split))
