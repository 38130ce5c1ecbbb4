"""Takes secrets out of text before anybody reads it. Knows their shapes, not their values.

What it takes: passwords and users in addresses, secret parameters of links, enrolment tokens,
private keys in PEM, and what follows words such as `password=` or `Authorization:`. It rather
takes too much than too little, so it is for logs and displays, never for data.
"""

import re

__all__ = ["redact"]

_GONE = "***"
_WORDS = r"(?:pass(?:word|phrase|wd)?|secret|token|api[_-]?key|access[_-]?key|signature|sig|auth)"
_RULES = (
    # Also a block that was cut off before its end.
    (
        re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL),
        r"-----BEGIN \1----- ***",
    ),
    (re.compile(r"\b(ep1\.)[\w-]{8,}={0,2}"), rf"\1{_GONE}"),
    (re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/\s?#]*@", re.IGNORECASE), rf"\1{_GONE}@"),
    (re.compile(r"\b((?:proxy-)?authorization\b['\"]?\s*[:=]\s*).*", re.IGNORECASE), rf"\1{_GONE}"),
    (re.compile(r"\b((?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{_GONE}"),
    (
        re.compile(
            rf"(\b[\w-]*?{_WORDS}['\"]?\s*[=:]\s*)(?:\"[^\"]*\"|'[^']*'|[^\s&,;\"'}}]+)",
            re.IGNORECASE,
        ),
        rf"\1{_GONE}",
    ),
)


def redact(text: str) -> str:
    """Return TEXT with `***` wherever it holds a secret."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
