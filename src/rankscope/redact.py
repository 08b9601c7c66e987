"""Secrets taken out of text before it is recorded: what a rank or its libraries say may hold passwords and keys."""

from __future__ import annotations

import re

_PLACEHOLDER = "[removed]"
#: name = value, "name": "value", --name value, where the name says that the value is secret.
_NAMED = re.compile(
    r"(?P<name>[\w.-]{0,40}(?:password|passwd|passphrase|secret|token|api[_-]?key|apikey|access[_-]?key|private[_-]?key|"
    r"credential|auth|cookie|session[_-]?id|signature)[\w.-]{0,20})"
    r"(?P<between>[\"']?\s{0,3}(?:=|:|\s)\s{0,3})(?P<quote>[\"']?)(?P<value>[^\s\"',;&)\]}]{4,512})",
    re.IGNORECASE,
)
#: Words that follow such a name in ordinary text: "tokens per second", "auth failed", "token id 50257".
_PLAIN = re.compile(r"^(?:\d{1,7}|[a-z]{1,14}|[A-Z]?[a-z]{1,14}[.:]?|None|null|true|false)$")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,2048}", re.IGNORECASE)
_USER_INFO = re.compile(r"(\b[a-z][a-z0-9+.-]{1,15}://)[^/\s@]{1,256}@", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&](?:X-Amz-[A-Za-z-]{1,24}|sig|signature|token|key|code|AWSAccessKeyId)=)[^&\s\"']{4,2048}", re.IGNORECASE
)
#: Keys that are known by their shape: Hugging Face, OpenAI and its kin, GitHub, GitLab, Slack, AWS, Google, JWT.
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|"
    r"xox[abpros]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,})"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.DOTALL
)


def without_secrets(text: str) -> str:
    """The text with whatever looks like a secret replaced. Errs on the side of removing."""
    text = _PRIVATE_KEY.sub(_PLACEHOLDER, text)
    text = _SHAPES.sub(_PLACEHOLDER, text)
    text = _BEARER.sub(rf"\1 {_PLACEHOLDER}", text)
    text = _USER_INFO.sub(rf"\1{_PLACEHOLDER}@", text)
    text = _QUERY.sub(rf"\1{_PLACEHOLDER}", text)
    return _NAMED.sub(_hide, text)


def _hide(found: re.Match[str]) -> str:
    if found["value"].startswith(_PLACEHOLDER[:-1]):
        return found[0]
    spaced = not found["between"].strip(" \t\"'")
    # After a mere space it is a secret only where it does not read like a word or a number.
    if spaced and (_PLAIN.match(found["value"]) or not re.search(r"\d", found["value"])):
        return found[0]
    return f"{found['name']}{found['between']}{found['quote']}{_PLACEHOLDER}"
