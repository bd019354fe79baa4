"""Personal data and secrets that look real: counted, and shown masked. What was found stands in no finding.

Patterns with check sums where there are any (cards: Luhn, ISO/IEC 7812; accounts: ISO 13616, mod 97), so that a run of digits
is not taken for one. Each pattern reads a text once: none can be sent back and forth by a hostile one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

from evals.task.checks.findings import Finding, Level, Place, Pool
from evals.task.checks.places import SHOWN_ROWS, Splits
from evals.task.example import Example
from evals.task.reading.formats import Row

Kind = Literal["key", "e-mail", "account", "card", "phone"]
NAMES: dict[Kind, tuple[str, str]] = {
    "key": ("secret key", "secret keys"),
    "e-mail": ("e-mail address", "e-mail addresses"),
    "account": ("bank account (IBAN)", "bank accounts (IBAN)"),
    "card": ("card number", "card numbers"),
    "phone": ("phone number", "phone numbers"),
}

# Each begins with a prefix that its maker chose for being found.
KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY-----"
    r"|(?<![\w-])(?:"
    r"sk-[\w-]{20,200}"
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,200}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}(?!\w)"
    r"|gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}|glpat-[\w-]{20,200}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}"
    r"|AIza[\w-]{35}"
    r"|hf_[A-Za-z0-9]{30,100}"
    r"|eyJ[\w-]{10,3000}\.eyJ[\w-]{10,6000}\.[\w-]{10,3000}"
    r")",
    re.ASCII,
)
# RFC 5321 allows 64 signs before the @, RFC 1035 63 in each part of the domain.
EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@((?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}([A-Za-z]{2,24}))(?![\w-])", re.ASCII)
ACCOUNT = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.ASCII)
CARD = re.compile(
    r"(?<![\w.,+-])(?<!\d[ -])(?:[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}|3\d{3}([ -])\d{6}\2\d{4,5}|[2-6]\d{12,18})(?![\w-])(?!\.\d)",
    re.ASCII,
)
INTERNATIONAL = r"(?<![\w+])\+[1-9](?:[ .()/-]{0,2}\d){7,14}(?!\w)"
NATIONAL = (
    r"(?<![\w.,/+-])(?<!\d[ (])(?:"
    r"(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"  # North America
    r"|0[1-9](?:[ .-]\d{2}){4}"  # France
    r"|\(?0\d{2,4}\)?[ /-]\d{3,4}[ -]?\d{3,5}"  # Britain, Germany and others with a 0 before the area
    r"|[6-9]\d{4} \d{5}"  # India
    r")(?![\w-]|[.,/]\d)"
)
# Bare digits are a phone number only where the text says so.
NAMED = (
    r"(?:(?i:\b(?:phone|telephone|tel|mobile|whatsapp|fax|handy|telefon|call (?:me|us) (?:at|on))"
    r"(?: (?:number|no|nr|is)){0,2})\W{1,4}|(?:电话|手机|電話)\W{0,8})(?P<named>\(?\d(?:[ .()-]{0,2}\d){6,13})(?!\w)"
)
PHONE = re.compile(f"{INTERNATIONAL}|{NATIONAL}|{NAMED}", re.ASCII)
# What every card and phone number holds, quickly looked for.
DIGITS = re.compile(r"\d(?:[ .()/-]{0,2}\d){6}", re.ASCII)

# The length of an account's number by country (the IBAN registry); a country that is not here is not looked for.
ACCOUNT_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS", 23: "AE GI IL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "PT",
        26: "IS TR", 27: "FR GR IT MC SM", 28: "AL AZ CY DO GT HU LB PL", 29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC",
    }.items()
    for country in countries.split()
}  # fmt: skip
# What documentation is allowed to use: RFC 2606 and 6761; and what people write for "put yours here".
EXAMPLE_DOMAIN = re.compile(
    r"(?:^|[@.])(?:example\.(?:com|net|org|edu)|(?:your|my)?(?:domain|company|mail|email)\.(?:com|org|tld)|test\.com)$"
    r"|\.(?:example|test|invalid|localhost)$",
    re.IGNORECASE,
)
FILE_ENDINGS = frozenset("png jpg jpeg gif svg webp bmp css js ts py html md txt json yaml yml".split())  # noqa: SIM905
# Numbers that the card networks and payment providers publish for tests.
TEST_CARDS = frozenset(
    "4111111111111111 4242424242424242 4012888888881881 4222222222222222 4917610000000000 5555555555554444 5105105105105100 "  # noqa: SIM905
    "5454545454545454 5200828282828210 2223003122003222 2223000048400011 378282246310005 371449635398431 6011111111111117 "
    "6011000990139424 3530111333300000 3566002020360505 30569309025904 38520000023237 4988438843884305 4166676667666746".split()
)
EXAMPLE_ACCOUNTS = frozenset(
    "DE89370400440532013000 GB29NWBK60161331926819 GB82WEST12345698765432 FR1420041010050500013M02606 "  # noqa: SIM905
    "NL91ABNA0417164300 ES9121000418450200051332 IT60X0542811101000000123456 CH9300762011623852957 BE68539007547034 "
    "AT611904300234573201 GB33BUKB20201555555555 DE75512108001245126199".split()
)
# Numbers set aside for fiction: 555 in North America, Ofcom's in Britain. And what a finger draws along the keys.
FICTION = re.compile(
    r"1?(?:\d{3})?555\d{4}|1?555\d{7}|(?:44|0)(?:2079460\d{3}|7700900\d{3}|1632960\d{3})|\d*(?:1234567|7654321)\d*"
)
EXAMPLE_KEY = re.compile(r"example|your|placeholder|dummy|fake|sample|x{5}|\*|1234567890|abcdefgh|0{8}", re.IGNORECASE)
SANE_SEPARATORS = 6


@dataclass(frozen=True)
class Hit:
    """One find: its characters `start` to `end` of the text, how it may be shown, and whether it looks like an example."""

    kind: Kind
    start: int
    end: int
    masked: str
    placeholder: bool


def personal_data(splits: Splits) -> list[Finding]:
    """Counts by kind and split (`personal_data`), real ones apart from placeholders, a few shown masked with their rows."""
    found = []
    for pool, rows in splits.items():
        together: dict[tuple[Kind, bool], list[tuple[Row, list[Hit]]]] = {}
        for row in rows:
            of_row: dict[tuple[Kind, bool], list[Hit]] = {}
            for text in _texts(row.example):
                for hit in hits(text):
                    of_row.setdefault((hit.kind, hit.placeholder), []).append(hit)
            for key, some in of_row.items():
                together.setdefault(key, []).append((row, some))
        for kind in NAMES:
            for placeholder in (False, True):
                if some_rows := together.get((kind, placeholder)):
                    found.append(_finding(pool, kind, placeholder, some_rows))
    return found


def hits(text: str) -> list[Hit]:
    """Everything that looks like personal data or a secret, in its order; nothing is counted twice."""
    found: list[Hit] = []
    for finder in (_keys, _emails, _accounts, *((_cards, _phones) if DIGITS.search(text) else ())):
        some = list(finder(text))
        if some:
            # What is known is painted over with a letter, so that no part of it begins or ends another find.
            text = _replaced(text, [(hit.start, hit.end, "_" * (hit.end - hit.start)) for hit in some])
            found += some
    return sorted(found, key=lambda hit: hit.start)


def masked(text: str) -> str:
    """The text with every find in it masked."""
    return _replaced(text, [(hit.start, hit.end, hit.masked) for hit in hits(text)])


def _replaced(text: str, spans: list[tuple[int, int, str]]) -> str:
    parts, at = [], 0
    for start, end, instead in spans:
        parts += [text[at:start], instead]
        at = end
    return "".join([*parts, text[at:]])


def _texts(example: Example) -> Iterator[str]:
    """All of a row that a model may be trained on or asked."""
    for message in example.messages:
        yield message.content
        yield from (call.arguments for call in message.tool_calls)
    yield example.target
    yield from example.paraphrases
    if example.rejected is not None:
        yield example.rejected


def _keys(text: str) -> Iterator[Hit]:
    for match in KEY.finditer(text):
        key = match.group()
        if key.startswith("-----"):
            yield Hit("key", *match.span(), "PEM private key", False)
        elif any(map(str.isdigit, key)) and (len(set(key)) >= 10 or EXAMPLE_KEY.search(key)):
            # "sk-learn-and-other-words" has no digit; a handful of signs over and over is no key.
            prefix = re.match(r"(?:[A-Za-z]{2,6}[-_])+|[A-Za-z]{3,4}", key[:9])
            yield Hit("key", *match.span(), f"{prefix.group() if prefix else ''}***", bool(EXAMPLE_KEY.search(key)))


def _emails(text: str) -> Iterator[Hit]:
    if "@" not in text:
        return
    for match in EMAIL.finditer(text):
        local, domain, ending = match.group().split("@")[0], match.group(1), match.group(2)
        if ending.lower() not in FILE_ENDINGS:
            shown = f"{_initial(local)}***@{_initial(domain.split('.')[0])}***.{ending}"
            yield Hit("e-mail", *match.span(), shown, bool(EXAMPLE_DOMAIN.search(domain)))


def _initial(name: str) -> str:
    """The first letter of a name that is long enough not to be given away by it."""
    return name[0] if len(name) > 2 else ""


def _accounts(text: str) -> Iterator[Hit]:
    for match in ACCOUNT.finditer(text):
        # A word in capitals may follow: the country says how long its numbers are.
        length = ACCOUNT_LENGTHS.get(match.group()[:2], 0)
        whole = match.group().replace(" ", "")[:length]
        if length and len(whole) == length and _mod_97(whole):
            end = match.start() + _end_of(match.group(), length)
            yield Hit("account", match.start(), end, f"{whole[:2]}** **** {whole[-2:]}", whole in EXAMPLE_ACCOUNTS)


def _end_of(text: str, count: int) -> int:
    """How far `count` signs that are no spaces reach into the text."""
    positions = [at for at, sign in enumerate(text) if sign != " "]
    return positions[count - 1] + 1


def _mod_97(account: str) -> bool:
    """ISO 13616: the first four signs behind the others, letters as numbers from 10, is 1 modulo 97."""
    return int("".join(str(int(sign, 36)) for sign in account[4:] + account[:4])) % 97 == 1


def _cards(text: str) -> Iterator[Hit]:
    for match in CARD.finditer(text):
        digits = _digits(match.group())
        if _issued(digits) and _luhn(digits):
            test = digits in TEST_CARDS or digits.startswith("400000") or len(set(digits)) <= 3
            yield Hit("card", *match.span(), f"{digits[:4]} **** **** {digits[-4:]}", test)


def _issued(digits: str) -> bool:
    """Whether a network issues cards of this beginning and length (ISO/IEC 7812)."""
    length, four = len(digits), int(digits[:4])
    if length == 16:
        return digits[0] == "4" or 5100 <= four <= 5599 or 2221 <= four <= 2720 or 3528 <= four <= 3589 or digits[0] == "6"
    if length == 15:
        return digits[:2] in ("34", "37")
    if length == 14:
        return digits[:2] in ("30", "36", "38")
    return (length == 13 and digits[0] == "4") or (length == 19 and digits[:2] in ("62", "63", "67"))


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _phones(text: str) -> Iterator[Hit]:
    for match in PHONE.finditer(text):
        group = "named" if match["named"] else 0
        number = match.group(group)
        digits = _digits(number)
        if not _dialled(number, digits):
            continue
        fiction = FICTION.fullmatch(digits) is not None or len(set(digits[-7:])) == 1
        shown = f"{'+' if number[0] == '+' else ''}*** *** **{digits[-2:]}"
        yield Hit("phone", *match.span(group), shown, fiction)


def _dialled(number: str, digits: str) -> bool:
    if len(number) - len(digits) > SANE_SEPARATORS or re.match(r"(?:19|20)\d\d[-.](?:0\d|1[0-2])\b", number):
        return False
    # North America and Russia have numbers of one length (ITU-T E.164).
    return not number.startswith(("+1", "+7")) or len(digits) == 11


def _digits(text: str) -> str:
    return "".join(sign for sign in text if sign.isdigit())


def _finding(pool: str, kind: Kind, placeholder: bool, rows: list[tuple[Row, list[Hit]]]) -> Finding:
    count = sum(len(some) for _, some in rows)
    examples = list(dict.fromkeys(hit.masked for _, some in rows for hit in some))[:3]
    looks = "look like placeholders" if placeholder else "look real"
    if count == 1:
        looks = looks.replace("look", "looks", 1).replace("placeholders", "a placeholder")
    message = (
        f"{count:,} {NAMES[kind][count > 1]} in {len(rows):,} row{'s' if len(rows) > 1 else ''} of {pool} {looks}, "
        f"{'such as' if count > 1 else 'masked'} {', '.join(examples)}"
    )
    level: Level = "info" if placeholder else "warning" if kind in ("key", "card", "account") else "review"
    places = tuple(_place(pool, row, some) for row, some in rows[:SHOWN_ROWS])
    details = {"kind": kind, "split": pool, "count": count, "rows": len(rows), "placeholder": placeholder}
    return Finding("personal_data", level, message, places, float(count), details=details)


def _place(pool: str, row: Row, some: list[Hit]) -> Place:
    """Where the row stands. Neither its text nor a name that is an address itself is shown."""
    return Place(cast(Pool, pool), masked(row.example.id), row.file, row.line, ", ".join(hit.masked for hit in some[:3]))
