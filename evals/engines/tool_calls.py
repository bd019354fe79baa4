"""A model's text -> the tool calls in it: each family of models writes them in a form of its own."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from evals.engines.engine import ToolCall

NAME = re.compile(r"[\w.:/-]{1,128}")
# What stands between the calls of one block. Llama writes semicolons.
BETWEEN = re.compile(r"[\s,;]*")
# Mistral since 2025: `name[CALL_ID]id[ARGS]{…}`.
NAMED = re.compile(r"\s*([\w.:/-]{1,128})(?:\[CALL_ID\]([\w-]{1,64}))?\s*\[ARGS\]\s*")
# Qwen 3.5, Qwen-Coder and Nemotron: elements instead of JSON.
FUNCTION = re.compile(r"\s*<function=([\w.:/-]{1,128})>")
FUNCTION_ENDS = "</function>"
PARAMETER = re.compile(r"<parameter=([^<>\n]{1,128})>\n?((?:(?!<parameter=).)*?)\n?</parameter>", re.DOTALL)
# Gemma: JSON with bare keys, its strings between marks of their own.
GEMMA = re.compile(r"\s*call:([\w.:/-]{1,128})(?=\{)")
GEMMA_ENDS = ("<end_function_call>", "<tool_call|>")
GEMMA_STRING = re.compile(r"<escape>(.*?)<escape>|<\|\"\|>(.*?)<\|\"\|>", re.DOTALL)
GEMMA_KEY = re.compile(r"(?<=[{,])\s*(\w+)\s*:")
# Longer Python text is not parsed: the parser's time and stack grow with it.
LONGEST_PYTHON = 10_000
WORDS = {"true": True, "false": False, "null": None}

# The calls that begin at a place of a text and where they end, or None where there are none. The properties are those of
# each offered tool's schema, by tool and parameter.
Properties: TypeAlias = Mapping[str, Mapping[str, Any]]
Found: TypeAlias = tuple[list[ToolCall], int] | None
Reader: TypeAlias = Callable[[str, int, Properties], Found]


def read_calls(text: str, tools: Sequence[str] = ()) -> tuple[str, tuple[ToolCall, ...]]:
    """What a model says beside its tool calls, and the calls in their order. `tools` are those of the request.

    Read are the forms of Hermes and Qwen, Llama 3, Mistral, Phi and Granite, LFM2, and Gemma. An object without marks
    around it (Llama) counts only where it is the whole text and names an offered tool. What stands before the last
    `</think>` is reasoning, and holds no calls. Arguments become the JSON text of an object. What cannot be read stays in
    the text; without a call the text comes back unchanged. Never raises.
    """
    properties = _properties(tools)
    start = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
    said, calls, at = [text[:start]], list[ToolCall](), start
    while mark := OPENINGS.search(text, at):
        found = _read_block(text, mark, properties)
        if found is None:
            said[-1:] = [said[-1] + text[at : mark.end()]]
            at = mark.end()
            continue
        said[-1:] = [said[-1] + text[at : mark.start()], ""]
        calls += found[0]
        at = found[1]
    said[-1] += text[at:]
    if not calls:
        return (text[:start].strip(), tuple(bare)) if (bare := _bare(text[start:], properties)) else (text, ())
    return "\n".join(one.strip() for one in said if one.strip()), tuple(calls)


def parsed_by_tokenizer(
    tokenizer: Any, text: str, prompt: str, tools: Sequence[str]
) -> tuple[str, tuple[ToolCall, ...]] | None:
    """As `read_calls`, by the `response_template` that the tokeniser ships with; None where it has none or finds no calls."""
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        message = tokenizer.parse_response(text, prefix=prompt, tools=[json.loads(one) for one in tools])
        calls = [as_call(one) for one in message["tool_calls"]]
        said = message.get("content") or ""
    except Exception:  # a template's own parsers may raise whatever they like
        return None
    known = [one for one in calls if one is not None]
    return (str(said), tuple(known)) if known and len(known) == len(calls) else None


def as_call(value: Any, known: Collection[str] | None = None) -> ToolCall | None:
    """A call out of a JSON value, by any of the names that its keys go by; None where it is none.

    With `known` names a call must be of one of them and say its arguments.
    """
    if not isinstance(value, dict):
        return None
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    name = _first(inner, "name", "tool_name")
    given = _first(inner, "arguments", "parameters")
    if known is not None and (not isinstance(name, str) or name not in known or given is None):
        return None
    return _call(name, given, _first(value, "id", "tool_call_id"))


def _first(value: Mapping[str, Any], *keys: str) -> Any:
    return next((value[key] for key in keys if key in value), None)


def _call(name: Any, arguments: Any, name_of_call: Any = "") -> ToolCall | None:
    """None where the arguments are no object that JSON can say in UTF-8, or the name is no name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return None
    try:
        given = json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments
        given = {} if given is None or given == "" else given
        if not isinstance(given, dict):
            return None
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, TypeError, RecursionError):
        return None
    known = isinstance(name_of_call, str) and NAME.fullmatch(name_of_call)
    return ToolCall(name, text, name_of_call if known else "")


def _properties(tools: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for one in tools:
        try:
            function = json.loads(one)["function"]
            properties = function.get("parameters", {}).get("properties", {})
            found[function["name"]] = properties if isinstance(properties, dict) else {}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


def _read_block(text: str, mark: re.Match[str], properties: Properties) -> Found:
    """The calls behind an opening mark, and where its closing mark ends, if there is one."""
    readers, closings = FORMS[mark[0]]
    for read in readers:
        if found := read(text, mark.end(), properties):
            calls, end = found
            behind = BETWEEN.match(text, end)
            end = behind.end() if behind and text.startswith(closings, behind.end()) else end
            closing = next((one for one in closings if text.startswith(one, end)), "")
            return calls, end + len(closing)
    return None


def _bare(text: str, properties: Properties) -> list[ToolCall]:
    text = text.strip()
    found = _read_json(text, 0, properties, known=properties.keys())
    return found[0] if found and found[1] == len(text) else []


def _read_json(text: str, at: int, _: Properties, known: Collection[str] | None = None) -> Found:
    """Objects and lists of objects, one after another. All must be calls: half of what a model asked for is not run."""
    calls: list[ToolCall] = []
    end = at
    while (behind := BETWEEN.match(text, end)) and text.startswith(("{", "["), behind.end()):
        try:
            value, stop = json.JSONDecoder().raw_decode(text, behind.end())
        except (ValueError, RecursionError):
            return None
        read = [as_call(one, known) for one in (value if isinstance(value, list) else [value])]
        calls += [one for one in read if one is not None]
        if None in read:
            return None
        end = stop
    return (calls, end) if calls else None


def _read_named(text: str, at: int, properties: Properties) -> Found:
    if not (head := NAMED.match(text, at)):
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text, head.end())
    except (ValueError, RecursionError):
        return None
    call = _call(head[1], value, head[2] or "") if isinstance(value, dict) else None
    return ([call], end) if call else None


def _read_elements(text: str, at: int, properties: Properties) -> Found:
    """A value stands there as text: of a parameter that is no string it is read as JSON."""
    head = FUNCTION.match(text, at)
    end = text.find(FUNCTION_ENDS, head.end()) if head else -1
    if head is None or end < 0:
        return None
    body, known = text[head.end() : end], properties.get(head[1], {})
    if PARAMETER.sub("", body).strip():
        return None
    call = _call(head[1], {key.strip(): _typed(raw, known.get(key.strip())) for key, raw in PARAMETER.findall(body)})
    return ([call], end + len(FUNCTION_ENDS)) if call else None


def _typed(raw: str, schema: Any) -> Any:
    kind = schema.get("type", "string") if isinstance(schema, dict) else "string"
    if "string" in kind:
        return raw
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return WORDS.get(raw.strip().lower(), raw)


def _read_gemma(text: str, at: int, properties: Properties) -> Found:
    if not (head := GEMMA.match(text, at)):
        return None
    end = min((place for mark in GEMMA_ENDS if (place := text.find(mark, head.end())) >= 0), default=len(text))
    strings: list[str] = []

    def kept(match: re.Match[str]) -> str:
        strings.append(match[1] if match[1] is not None else match[2])
        return f'"{len(strings) - 1}"'

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restored(one) for key, one in value.items()}
        if isinstance(value, list):
            return [restored(one) for one in value]
        return strings[int(value)] if isinstance(value, str) else value

    body = text[head.end() : end]
    if '"' in GEMMA_STRING.sub("", body):  # it would be taken for one of ours
        return None
    try:
        call = _call(head[1], restored(json.loads(GEMMA_KEY.sub(r'"\1":', GEMMA_STRING.sub(kept, body)))))
    except (ValueError, RecursionError):
        return None
    return ([call], end) if call else None


def _read_python(text: str, at: int, properties: Properties) -> Found:
    """`[name(key=value), …]`, parsed and never run."""
    end = text.find("<|tool_call_end|>", at)
    end = len(text) if end < 0 else end
    if end - at > LONGEST_PYTHON:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            body = ast.parse(text[at:end].strip(), mode="eval").body
        calls = [_of_python(node) for node in (body.elts if isinstance(body, ast.List) else [body])]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    known = [one for one in calls if one is not None]
    return (known, end) if known and len(known) == len(calls) else None


def _of_python(node: ast.expr) -> ToolCall | None:
    if not isinstance(node, ast.Call) or node.args or not all(one.arg for one in node.keywords):
        return None
    return _call(ast.unparse(node.func), {one.arg: _literal(one.value) for one in node.keywords})


def _literal(node: ast.expr) -> Any:
    """Raises ValueError for what is no literal."""
    return WORDS[node.id] if isinstance(node, ast.Name) and node.id in WORDS else ast.literal_eval(node)


# By opening mark: who reads what stands behind it, and the marks that close it. A text may end without one.
FORMS: dict[str, tuple[tuple[Reader, ...], tuple[str, ...]]] = {
    "<tool_call>": ((_read_json, _read_elements), ("</tool_call>",)),
    "<|tool_call|>": ((_read_json,), ("<|/tool_call|>", "</tool_call>")),
    "<|tool_call_start|>": ((_read_python, _read_json), ("<|tool_call_end|>",)),
    "<|python_tag|>": ((_read_json,), ("<|eom_id|>", "<|eot_id|>")),
    "[TOOL_CALLS]": ((_read_json, _read_named), ()),
    "<start_function_call>": ((_read_gemma,), ("<end_function_call>",)),
    "<|tool_call>": ((_read_gemma,), ("<tool_call|>",)),
}
OPENINGS = re.compile("|".join(map(re.escape, FORMS)))
