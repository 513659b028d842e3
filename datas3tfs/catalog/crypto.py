"""Credentials at rest: AES-256-GCM, byte-compatible with the Go servers of datas3t.

Stored is base64(nonce ‖ ciphertext ‖ tag), nothing for nothing. The AES key is the SHA-256 of the decoded
key string, whatever its length (the Go servers do the same). Pure but for the random nonce and key. No
message in here quotes a key or a credential.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from datas3tfs.errors import Invalid

_KEY_BYTES = 32
_NONCE_BYTES = 12  # what Go's cipher.NewGCM uses
_TAG_BYTES = 16


def generate_key() -> str:
    """Return a new random encryption key, as base64 text."""
    return base64.b64encode(os.urandom(_KEY_BYTES)).decode()


class Cipher:
    """Encrypts and decrypts credentials with one key; without one it refuses to do either."""

    def __init__(self, key: str | None) -> None:
        """Take the key as base64 text; None or "" is no key. Raises Invalid if it is not base64."""
        self._aead = AESGCM(_aes_key(key)) if key else None

    def __repr__(self) -> str:
        return "Cipher(…)"

    def encrypt(self, plain: str) -> str:
        """Return *plain* as it is stored. Raises Invalid without a key, or if it is not Unicode text."""
        return self._encrypt(plain, os.urandom(_NONCE_BYTES))

    def _encrypt(self, plain: str, nonce: bytes) -> str:
        if not plain:
            return ""
        try:
            content = plain.encode()
        except UnicodeEncodeError:
            raise Invalid("a credential is not valid UTF-8") from None
        return base64.b64encode(nonce + self._checked().encrypt(nonce, content, None)).decode()

    def decrypt(self, stored: str) -> str:
        """Return what was encrypted. Raises Invalid without a key, with the wrong key, or on damage."""
        if not stored:
            return ""
        aead = self._checked()
        try:
            sealed = base64.b64decode(stored, validate=True)
            if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
                raise ValueError("too short")
            return aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None).decode()
        except (InvalidTag, ValueError):  # binascii.Error and UnicodeDecodeError are ValueErrors
            raise Invalid(
                "credentials cannot be decrypted: the encryption key is not the one they were stored with"
            ) from None

    def _checked(self) -> AESGCM:
        if self._aead is None:
            raise Invalid("no encryption key is set (DATAS3TFS_ENCRYPTION_KEY; `datas3tfs keygen` makes one)")
        return self._aead


def _aes_key(key: str) -> bytes:
    try:
        decoded = base64.b64decode(key.strip(), validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise Invalid("the encryption key is not base64 text (`datas3tfs keygen` makes one)") from None
    return hashlib.sha256(decoded).digest()
