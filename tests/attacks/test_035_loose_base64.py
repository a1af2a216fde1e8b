"""Base64 that a lenient decoder would read: many spellings of one paper."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable

import pytest
from tests.attacks.hostile import Target

from moiety.errors import FormatError, TrustError
from moiety.files import canonical_json


@pytest.mark.parametrize("field", ["payload", "sig"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "=",
        lambda text: text + "AAAA",
        lambda text: text[:20] + "\n" + text[20:],
        lambda text: " " + text,
        lambda text: text[:8] + "!" + text[8:],
        lambda text: text.rstrip("=") if text.endswith("=") else text[:-1],
        lambda text: text[:4] + "====" + text[4:],
        lambda text: text[:9] + "\u0391" + text[10:],
        lambda text: "",
    ],
)
def test_loose_base64_is_refused(target: Target, field: str, change: Callable[[str], str]) -> None:
    envelope = json.loads((target.folder / "signature.json").read_bytes())
    holder = envelope if field == "payload" else envelope["signatures"][0]
    holder[field] = change(holder[field])
    (target.folder / "signature.json").write_bytes(canonical_json(envelope))
    with pytest.raises(TrustError):
        target.verify().close()


def test_stray_bits_in_the_last_digit_are_refused(target: Target) -> None:
    # 64 bytes leave one byte for the last group: its second digit has four bits nobody reads.
    envelope = json.loads((target.folder / "signature.json").read_bytes())
    text = envelope["signatures"][0]["sig"]
    assert text.endswith("==")
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    stray = text[:-3] + digits[digits.index(text[-3]) + 1] + "=="
    assert base64.b64decode(stray) == base64.b64decode(text)
    envelope["signatures"][0]["sig"] = stray
    (target.folder / "signature.json").write_bytes(canonical_json(envelope))
    target.refused(FormatError, "not the canonical base64")
