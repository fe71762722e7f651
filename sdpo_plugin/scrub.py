"""Addresses as they may be shown: without user names, passwords and queries, and to anyone. Pure functions on text."""

import re

# A password may hold a slash, as secret keys of S3 do; a host's port, which a slash follows too, is none.
URL_USER = re.compile(r"(?<=://)(?:[^/\s]+@|[^\s/@:]*:(?!\d+/)[^\s@]*@)")
URL_QUERY = re.compile(r"(\w://[^?\s]*)\?\S*")
SEPARATORS = re.compile(r"[:/@?&=]+")
# Where something lies on somebody's machine or in somebody's storage: a path from its root, s3://…, file://…
PLACE = re.compile(r"(?:[/~\\]|[A-Za-z]:[/\\]|(?!https?:)[A-Za-z][\w+.-]*://).*", re.DOTALL)


def without_credentials(text: str) -> str:
    """The text with every URL in it cut down to scheme, host and path."""
    return URL_QUERY.sub(r"\1", URL_USER.sub("", text))


def reveals(text: str, address: str) -> bool:
    """Whether ``text`` holds any part of what ``without_credentials`` takes out of ``address``.

    Errors of the libraries that read from afar repeat parts of an address, such as what they take for a bucket.
    """
    hidden = [match.group() for match in URL_USER.finditer(address)]
    hidden += [match.group().removeprefix(match.group(1)) for match in URL_QUERY.finditer(URL_USER.sub("", address))]
    return any(part in text for secret in hidden for part in SEPARATORS.split(secret) if part)


def last_part(place: str) -> str:
    """The last name of a path or address; the text itself where it has none."""
    return re.split(r"[/\\]", place.rstrip("/\\"))[-1] or place


def without_place(text: str) -> str:
    """The text as it may be published: of a place only the last part, other addresses without credentials."""
    text = without_credentials(text)
    return last_part(text) if PLACE.fullmatch(text) and "\n" not in text else text
