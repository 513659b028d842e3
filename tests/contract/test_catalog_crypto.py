"""Credentials at rest are byte-compatible with the Go servers'."""

from __future__ import annotations

import base64

import pytest

from datas3tfs.catalog.crypto import Cipher, generate_key
from datas3tfs.errors import Invalid

GO_KEY = "dGVzdC1rZXktMzItYnl0ZXMtZm9yLXRlc3RpbmchIQ=="  # 31 bytes when decoded, as in the Go suite
MADE_BY_GO = "AtWcKV7ipUrYOqzCtDqRwjz5pU65OPp+gtI3dFhGpsJ7oWMIa4A="
FIXED_NONCE = "AAECAwQFBgcICQoLHxjHC/Skio7H96dmukq0VL3gAbet3bY5bfM="


def test_what_go_encrypted_is_decrypted() -> None:
    assert Cipher(GO_KEY).decrypt(MADE_BY_GO) == "minioadmin"
    assert Cipher(GO_KEY).decrypt(FIXED_NONCE) == "minioadmin"


def test_the_bytes_are_those_of_the_vector() -> None:
    assert Cipher(GO_KEY)._encrypt("minioadmin", bytes(range(12))) == FIXED_NONCE


def test_round_trips() -> None:
    cipher = Cipher(generate_key())
    for plain in ("", "a", "ключ" * 500, "line\nbreak\0"):
        assert cipher.decrypt(cipher.encrypt(plain)) == plain
    assert cipher.encrypt("") == ""
    assert cipher.encrypt("same") != cipher.encrypt("same")


def test_keys_are_32_random_bytes() -> None:
    assert len(base64.b64decode(generate_key(), validate=True)) == 32
    assert generate_key() != generate_key()


@pytest.mark.parametrize("stored", ["x", "AAAA", MADE_BY_GO[:-8] + "AAAAAAA=", MADE_BY_GO[1:], "é"])
def test_damage_is_noticed(stored: str) -> None:
    with pytest.raises(Invalid, match="cannot be decrypted"):
        Cipher(GO_KEY).decrypt(stored)


def test_bad_keys_and_credentials_are_refused_without_quoting_them() -> None:
    with pytest.raises(Invalid, match="base64"):
        Cipher("no key")
    with pytest.raises(Invalid, match="UTF-8"):
        Cipher(GO_KEY).encrypt("secret\udc80")
    for use in (Cipher(None).encrypt, Cipher("").decrypt):
        with pytest.raises(Invalid, match="no encryption key"):
            use("secret")
    assert GO_KEY not in repr(Cipher(GO_KEY))
