"""URLs without their secrets: user names, passwords and queries are neither printed nor recorded."""

from __future__ import annotations

import re
from urllib.parse import unquote

_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://)")  # as in zip://member::https://host/file.zip
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_AZURE = ("az", "abfs", "abfss", "adl", "wasb", "wasbs")  # container@account stands where others have user:password@
_PATHS = ("file", "local", "memory")  # of these everything behind :// is a path
_SHORT = 4  # characters; what is shorter may be part of any word


def plain(url: str) -> str:
    """A URL, or a chain of them, without what may be secret."""
    return "::".join(_parts(link)[0] for link in _CHAIN.split(url))


def has_query(url: str) -> bool:
    """Whether names of files, put behind a URL or the first one of a chain, would become part of a query."""
    named = next((link for link in _CHAIN.split(url) if "://" in link), url)
    return bool(_parts(named)[2])


def redacted(text: str, url: str) -> str:
    """A message that may quote the URL, whole or in pieces, or others: without what may be secret."""
    text = _URL.sub(lambda found: plain(found[0]), text)
    for link in _CHAIN.split(url):
        _, user, query = _parts(link)
        text = text.replace(f"{user}@", "") if user else text
        text = text.replace(f"?{query}", "") if query else text
        for secret in (query, user, user.partition(":")[2]):
            for word in (secret, unquote(secret)):
                text = text.replace(word, "***") if len(word) >= _SHORT else text
    return text


def _parts(link: str) -> tuple[str, str, str]:
    """What may be shown of one URL, the user name and password in it, and its query."""
    scheme, mark, rest = link.partition("://")
    if not mark or scheme.lower() in _PATHS:
        return link, "", ""
    host = rest.partition("/")[0]
    if "@" not in host and _is_torn(host):
        host = rest
    user, at, _ = host.rpartition("@")
    if not at or (scheme.lower() in _AZURE and ":" not in user):
        user = ""
    shown, _, query = rest[len(user) + bool(user) :].partition("?")
    return f"{scheme}://{shown}", user, query


def _is_torn(host: str) -> bool:
    """Whether it is the begin of a password with a slash in it: no host, since no number stands behind its colon."""
    port = host.rpartition(":")[2] if ":" in host and not host.startswith("[") else ""
    return bool(port) and not port.isdigit()
