"""Signing in to Label Studio, with either kind of token."""

from __future__ import annotations

import base64
import json
import re
import time
from pathlib import Path

from tcl_core.errors import SettingsError

__all__ = ["REFUSED", "Token", "check_token", "is_refresh_token", "is_token", "read_token_file"]

REFUSED = (400, 401, 403)
"""What Label Studio answers to a personal access token that it does not accept."""

_JSON_IN_BASE64 = "eyJ"
_MARGIN_SECONDS = 30.0
_DEFAULT_LIFE_SECONDS = 300.0
# RFC 6750, section 2.1.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,2000}=*")


def is_token(text: str) -> bool:
    """Whether a text can be a token: the letters, digits and signs that go into a header.

    >>> is_token("0123456789abcdef"), is_token("tökén"), is_token("two words")
    (True, False, False)
    """
    return _TOKEN.fullmatch(text) is not None


def is_refresh_token(token: str) -> bool:
    """Whether a token is a personal access token: a JSON web token (three parts), not a legacy key.

    >>> is_refresh_token("aaaa.bbbb.cccc"), is_refresh_token("0123456789abcdef")
    (True, False)
    """
    return token.count(".") == 2


def check_token(text: str, source: str) -> str:
    """The token, if it can be a whole one.

    Args:
        text: the token.
        source: where it comes from, for the message.

    Raises:
        SettingsError: it contains a character that no token has, or is only a part of one.
    """
    if not is_token(text):
        raise SettingsError(f"{source}: contains a character that no token has; copy the token from Label Studio again")
    # The list of tokens shows the first two parts of each; the whole one is shown only once.
    if text.startswith(_JSON_IN_BASE64) and not is_refresh_token(text):
        raise SettingsError(
            f"{source}: only a part of a personal access token, which Label Studio shows in whole only once; "
            "create a new one under Account & Settings > Personal Access Token, and use its Copy button"
        )
    return text


def read_token_file(path: Path) -> str:
    """The token in a file, without the line break.

    Raises:
        SettingsError: the file cannot be read, is empty or holds more than one line.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path}: the token cannot be read ({reason})") from error
    if not text or len(text.split()) > 1:
        raise SettingsError(f"{path}: expected one line with Label Studio's token")
    return check_token(text, str(path))


class Token:
    """A token, and for a personal one the access token that it was last exchanged for.

    Args:
        secret: a legacy key or a personal access token (which is a refresh token).
    """

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self._access: str | None = None
        self._expires = 0.0

    @property
    def needs_refresh(self) -> bool:
        """Whether the secret must be exchanged before the next request."""
        return is_refresh_token(self.secret) and (self._access is None or time.time() > self._expires - _MARGIN_SECONDS)

    def accept(self, access: str) -> None:
        """Keep a fresh access token."""
        self._access, self._expires = access, _expiry(access)

    def reject(self) -> bool:
        """Forget the access token that the server refused; returns whether a new one can be had."""
        self._access = None
        return is_refresh_token(self.secret)

    def header(self) -> dict[str, str]:
        """The ``Authorization`` header of a request."""
        return {"Authorization": f"Bearer {self._access}" if is_refresh_token(self.secret) else f"Token {self.secret}"}


def _expiry(access: str) -> float:
    """When an access token ends, by its own word (seconds since 1970)."""
    try:
        body = access.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return time.time() + _DEFAULT_LIFE_SECONDS
