"""What looks like personal data is found and counted, what does not is left; and the text itself never gets into a finding."""

from __future__ import annotations

import json
import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.engines.engine import Message
from evals.task.checks.personal_data import Hit, hits, masked, personal_data
from evals.task.example import Example
from evals.task.reading.formats import Row

# Joined here, so that no scanner of repositories takes this file for a leak.
AWS = "AKIA" + "Q7ZP2M4XK9RT3WLB"
GITHUB = "ghp_" + "aB3dE5fG7hI9jK1lM3nO5pQ7rS9tU1vW3xY5"
SLACK = "xox" + "b-2938475610-abcDEF123ghi"
GOOGLE = "AIza" + "SyD4k9fQ2mX7vB1nL8wR5tY3uI6oP0aSdFg"
OPENAI = "sk-" + "proj-a8Kd93Jf7sLq02Mz5XcV"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiI4NzIzIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r_wW1g"
PEM = "-----BEGIN RSA " + "PRIVATE KEY-----"


def row(text: str, target: str = "ok", name: str = "row-1") -> Row:
    return Row(Example(name, (Message("user", text),), target), "train.jsonl", 7)


def kinds(text: str) -> list[tuple[str, bool]]:
    return [(hit.kind, hit.placeholder) for hit in hits(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to jane.doe@acme-corp.io today", "e-mail"),
        ("邮箱是jane_d@firma.com.cn。", "e-mail"),
        ("call +44 20 7183 8750 now", "phone"),
        ("+4915117853942", "phone"),
        ("call (415) 867-5309", "phone"),
        ("it is 415-867-5309.", "phone"),
        ("au 06 12 39 56 78", "phone"),
        ("Tel. 030/2345678", "phone"),
        ("my phone number is 4158675309", "phone"),
        ("手机号码是13817253948", "phone"),
        ("card 4539 1488 0343 6467 12/27", "card"),
        ("card 4539148803436467", "card"),
        ("3714-496353-98432 no, 3782 822463 10013 yes", "card"),
        ("IBAN DE02 1203 0000 0000 2020 51 PLEASE", "account"),
        ("GB94BARC10201530093459", "account"),
        (f"key {AWS}.", "key"),
        (f"token={GITHUB}", "key"),
        (SLACK, "key"),
        (f"?key={GOOGLE}", "key"),
        (f"export K={OPENAI}", "key"),
        (f"Bearer {JWT}", "key"),
        (PEM, "key"),
    ],
)
def test_real_looking_data_is_found_once(text: str, kind: str) -> None:
    assert kinds(text) == [(kind, False)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("jane@example.com", "e-mail"),
        ("a@mail.example.org", "e-mail"),
        ("root@server.test", "e-mail"),
        ("555-0123 is short, 415-555-0123 is not", "phone"),
        ("+44 7700 900123", "phone"),
        ("123-456-7890 and 234-567-1234567", ""),
        ("4111 1111 1111 1111", "card"),
        ("5555555555554444", "card"),
        ("DE89 3704 0044 0532 0130 00", "account"),
        ("AKIA" + "IOSFODNN7EXAMPLE", "key"),
        ("sk-" + "your-api-key-0123456789", "key"),
    ],
)
def test_reserved_examples_are_counted_apart(text: str, kind: str) -> None:
    assert kinds(text) == ([(kind, True)] if kind else [])


@pytest.mark.parametrize(
    "text",
    [
        "order 12345678901234567 and 1234567812345678",
        "4539 1488 0343 6468 fails Luhn's test",
        "DE03 1203 0000 0000 2020 51 fails modulo 97",
        "3.14159265358979323846, 0.4539148803436467",
        "2024-01-15 10:30, 15.01.2024, 1990-2020",
        "48/2 = <<48/2=24>>24 and 7+12345678=12345685",
        "ISBN 978-3-16-148410-0, version 10.2.3.4, 192.168.100.200",
        "@jane and git@ and x@y, user@host, logo@2x.png",
        "sk-learn-and-other-long-names-with-hyphens",
        "ask-me-anything-about-2024-and-the-rest",
        "10 20 30 40 50 60 70 80 90 100",
        "(100, 200) 300-4000, 1,234,567,890",
        "XX12 1234 1234 1234",
    ],
)
def test_other_digits_and_signs_are_left(text: str) -> None:
    assert hits(text) == []


def test_masks_show_the_kind_and_little_more() -> None:
    text = f"jane@acme.io, 4539 1488 0343 6467, +44 20 7183 8750, GB94BARC10201530093459, {AWS}"
    assert masked(text) == "j***@a***.io, 4539 **** **** 6467, +*** *** **50, GB** **** 59, AKIA***"
    assert masked("al@x.io") == "***@***.io"


def test_counts_by_kind_and_split_with_placeholders_apart() -> None:
    train = [row("jane@acme.io and joe@acme.io"), row("jane@example.com"), row("x", "joe@acme.io")]
    found = personal_data({"train": train, "test": [row("+44 20 7183 8750")], "dev": []})
    counted = [
        (one.places[0].pool, one.details["kind"], one.details["placeholder"], one.value, one.details["rows"]) for one in found
    ]
    assert counted == [("train", "e-mail", False, 3.0, 2), ("train", "e-mail", True, 1.0, 1), ("test", "phone", False, 1.0, 1)]
    assert found[0].message == "3 e-mail addresses in 2 rows of train look real, such as j***@a***.io"
    assert [one.level for one in found] == ["review", "info", "review"]
    assert not any(one.drop for one in found)


def test_a_key_is_a_warning() -> None:
    assert [one.level for one in personal_data({"train": [row(f"use {GITHUB}")]})] == ["warning"]


SECRETS = [
    "jane.doe@acme-corp.io",
    "+44 20 7183 8750",
    "415-867-5309",
    "4539 1488 0343 6467",
    "GB94BARC10201530093459",
    AWS,
    GITHUB,
    SLACK,
    GOOGLE,
    OPENAI,
    JWT,
]


@given(
    st.lists(st.sampled_from(SECRETS), min_size=1, max_size=6), st.text(max_size=30), st.sampled_from(["train", "dev", "test"])
)
def test_what_was_found_stands_in_no_finding(secrets: list[str], around: str, split: str) -> None:
    # As the input, the answer and the row's own name.
    text = f" {around} | " + " | ".join(secrets) + " | "
    found = personal_data({split: [row(text, text, name=secrets[0])]})
    assert found
    record = json.dumps([asdict(one) for one in found], ensure_ascii=False)
    for secret in secrets:
        assert secret not in record
        assert secret[5:-3] not in record


@given(st.text(max_size=400))
def test_any_text_is_read_and_masking_leaves_the_rest_alone(text: str) -> None:
    found = hits(text)
    ends = [0, *(hit.end for hit in found)]
    assert all(start >= end for start, end in zip([hit.start for hit in found], ends, strict=False))
    if not found:
        assert masked(text) == text


def test_every_place_of_a_row_is_read() -> None:
    mail = "jane@acme.io"
    example = Example("a", (Message("system", mail), Message("user", mail)), mail, paraphrases=(mail,), rejected=mail)
    assert [one.value for one in personal_data({"train": [Row(example, "f", 1)]})] == [5.0]


@pytest.mark.parametrize(
    "piece",
    ["a", "a.", "@", "a@", "a@a.", "a@b.c ", "1", "1 ", "12-", "+1", "+1 ", "0", "00 ", "(", "4111 ", "4", "AA00", "AA00 ", "A0 ",
     "eyJ", "eyJa.", "sk-", "sk-a ", "xoxb-", "-----BEGIN ", "A ", "tel ", "手机", "call me at ", "(415) ", "jane@acme.io "],
    ids=repr,
)  # fmt: skip
def test_a_hostile_megabyte_takes_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    started = time.perf_counter()
    found = hits(text)
    assert time.perf_counter() - started < 3
    assert all(isinstance(hit, Hit) for hit in found[:3])
