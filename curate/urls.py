"""URLs say where data is, never who may read it: logins are refused in them, and struck out of what others report."""

from __future__ import annotations

import re

from curate.exceptions import InputError

_LOGIN = re.compile(r"://[^/@?#\s]*:(?!\d+(?:[/?#]|$))[^@\s]*@")
"""``user:password@``; a password may hold "/", and ``host:8080/a@b`` is a port."""
_BEARER = re.compile(r"https?://[^/@?#\s]+@")
_SIGNED = re.compile(
    r"([?&](?:x-amz-signature|x-amz-credential|x-amz-security-token|x-goog-signature|x-goog-credential|awsaccesskeyid"
    r"|signature|sig|token|access_token|api_key|key)=)[^&#\s]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """Return a text without the passwords, tokens and signatures of the URLs in it.

    >>> redacted("cannot read s3://AKIA:secret@bucket/x")
    'cannot read s3://***@bucket/x'
    """
    return _SIGNED.sub(
        r"\1***", _BEARER.sub(lambda m: m[0][: m[0].index("://")] + "://***@", _LOGIN.sub("://***@", text))
    )


def refuse_secrets(url: str) -> str:
    """Return a path or URL as it is, if it holds no login: it will stand in recipes, manifests and messages.

    Raises
    ------
    InputError
        For a password, a token or a signature inside a URL.
    """
    if redacted(url) != url:
        raise InputError(
            f"{redacted(url)}: a login stands in this URL. Leave it out: it would end up in manifests and messages. "
            "Logins come from the environment, a profile or a role (for s3:// AWS_ACCESS_KEY_ID or ~/.aws)."
        )
    return url
