"""Who may scrape: a bearer token, or a user with a password of which only a hash is kept.

`python -m rankscope.exporters.prometheus_auth` reads a password from standard input and prints what to put into the
password file: `scrypt$N$R$P$SALT$HASH`, salt and hash in hexadecimal (hashlib.scrypt).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rankscope.errors import ConfigurationError

_N, _R, _P = 2**12, 8, 1
#: scrypt takes milliseconds of a core: whoever guesses passwords gets no more than this many tries a second.
_TRIES_A_SECOND = 2
_MAX_FILE_BYTES = 4096


def hashed(password: str) -> str:
    """What stands in a password file."""
    salt = os.urandom(16)
    key = hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${key.hex()}"


class Gate:
    """Checks the Authorization header of a request, in constant time. For several threads."""

    def __init__(
        self,
        *,
        token_file: str = "",
        user: str = "",
        password_file: str = "",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigurationError where a file cannot be read or holds nothing that is fit."""
        if bool(user) != bool(password_file):
            raise ConfigurationError("a user and a password file belong together", where="prometheus")
        self._token = hashlib.sha256(_secret(token_file).encode()).digest() if token_file else None
        self._user = user
        self._hash = _parsed(_secret(password_file), password_file) if password_file else None
        #: Digest of the last header that was right, so that a scrape does not cost a scrypt each time.
        self._known = b""
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._tried: list[float] = []

    @property
    def open(self) -> bool:
        """Whether everybody may."""
        return self._token is None and self._hash is None

    @property
    def challenge(self) -> str:
        """What a refusal says is wanted."""
        return 'Basic realm="rankscope", charset="UTF-8"' if self._hash is not None else 'Bearer realm="rankscope"'

    def lets_in(self, header: str) -> bool:
        """Whether a request with this Authorization header may read."""
        if self.open:
            return True
        scheme, _, value = header.partition(" ")
        value = value.strip()
        if scheme.lower() == "bearer" and self._token is not None:
            return hmac.compare_digest(hashlib.sha256(value.encode("utf-8", "replace")).digest(), self._token)
        if scheme.lower() == "basic" and self._hash is not None:
            return self._password_fits(value)
        return False

    def _password_fits(self, value: str) -> bool:
        digest = hashlib.sha256(value.encode("utf-8", "replace")).digest()
        with self._lock:
            if self._known and hmac.compare_digest(digest, self._known):
                return True
            now = self._monotonic()
            self._tried = [at for at in self._tried if now - at < 1]
            if len(self._tried) >= _TRIES_A_SECOND or self._hash is None:
                return False
            self._tried.append(now)
            try:
                user, colon, password = base64.b64decode(value, validate=True).partition(b":")
            except ValueError:
                return False
            n, r, p, salt, expected = self._hash
            fits = hmac.compare_digest(hashlib.scrypt(password, salt=salt, n=n, r=r, p=p), expected)
            # Both are always looked at.
            fits &= bool(colon) and hmac.compare_digest(user, self._user.encode())
            if fits:
                self._known = digest
            return fits


def _secret(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_FILE_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot be read ({error})", where=path) from error
    if not text:
        raise ConfigurationError("holds no secret", where=path)
    return text


def _parsed(text: str, where: str) -> tuple[int, int, int, bytes, bytes]:
    try:
        name, n, r, p, salt, key = text.split("$")
        parsed = int(n), int(r), int(p), bytes.fromhex(salt), bytes.fromhex(key)
        if name != "scrypt" or len(parsed[4]) != 64:
            raise ValueError
        hashlib.scrypt(b"", salt=parsed[3], n=parsed[0], r=parsed[1], p=parsed[2])
    except ValueError:
        raise ConfigurationError(
            "holds no hash of a password",
            where=where,
            todo="write it with python -m rankscope.exporters.prometheus_auth",
        ) from None
    return parsed


if __name__ == "__main__":
    sys.stdout.write(hashed(sys.stdin.readline().rstrip("\n")) + "\n")
