"""The JSON Schema of `task.yaml`: what an editor completes, explains and underlines. Made from the models that read the file.

It never refuses what `read_spec` accepts. What a schema cannot say (which files exist, whether a pattern compiles) it lets pass.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core.core_schema import FloatSchema, IntSchema

from evals.engines.models import DEMO_MODEL, EMBEDDING_MODEL
from evals.metrics.options import NAMES, plain_options
from evals.task.model import HERE_ONLY, SERVED_ONLY
from evals.task.spec import TaskSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TITLE = "finetune-advisor task.yaml"
# What an editor shows beside a key whose type alone does not say it.
MEANINGS = {
    "TaskSpec.schema_version": "The version of this format: 1.",
    "TaskSpec.name": "Names the runs. The folder's name where it is left out.",
    "TaskSpec.instruction": "What the model is told to do: the text itself, or a file of it (instruction.md).",
    "TaskSpec.metric": "How an answer is scored: a name, a mapping of a name and its options, or a list of both. The first decides.",
    "TaskSpec.embeddings": "Who embeds texts: for retrieval, classifiers and the checks of the data.",
    "TaskSpec.tools": "Functions that the model may call while it answers.",
    "TaskSpec.rag": "How passages are found: a reranker, a rewritten query, a database that is filled already.",
    "TaskSpec.optimise": "The search for a better instruction, on the training rows.",
    "TaskSpec.target": "The score that is good enough: the cheapest candidate that surely reaches it is the answer.",
    "TaskSpec.traffic": "How much the task is used: what a training must pay back on.",
    "TaskSpec.train": "Overrides of the recommended recipe, by the names of transformers, peft and TRL.",
    "TaskSpec.seed": "Of splits, draws and training: the same seed gives the same result.",
    "DataSpec.train": "Examples for training and demonstrations: a file, or a dataset of the Hub.",
    "DataSpec.dev": "Examples for choosing between candidates. Split from `train` where it is left out.",
    "DataSpec.test": "Examples that are looked at once, for the final claim. Split from `train` where it is left out.",
    "DataSpec.documents": "A folder (Markdown, text, HTML, PDF) or a JSON Lines file that answers are looked up in.",
    "DataSpec.preferences": "Rows of `prompt`, `chosen` and `rejected`, for training by preference.",
    "DataSpec.replay": "General questions with answers, mixed into training by `train.replay_share` so that the model forgets less.",
    "ColumnsSpec.input": "The column that holds the question.",
    "ColumnsSpec.output": "The column that holds the right answer.",
    "ColumnsSpec.group": "The column that names related rows; they are kept in one split.",
    "ColumnsSpec.time": "The column that says when a row is from; the latest rows become the test.",
    "OutputSpec.type": "What an answer is: free text, one label of a closed set, a JSON object, or a number.",
    "OutputSpec.labels": "All labels that an answer may be.",
    "OutputSpec.schema": "A file: the JSON Schema that answers keep to.",
    "ModelSpec.model_name_or_path": "The demo model's name, a name on the Hub, a folder, a GGUF file, or what the server calls it.",
    "ModelSpec.engine": "`hf` runs the weights here; `endpoint` asks an OpenAI-compatible server at `base_url`.",
    "ModelSpec.base_url": "The server's address, such as http://localhost:8000/v1.",
    "ModelSpec.api_key_env": "The environment variable that holds the key. Never the key itself.",
    "ToolsSpec.functions": "calculator, lookup, python:FILE.py:FUNCTION, or FILE.json (declared only: the call is the answer).",
    "ToolsSpec.max_turns": "How many calls an answer may take.",
    "ToolsSpec.timeout": "Seconds that one call of your function may take.",
    "ToolsSpec.memory_mib": "Memory that your function may take.",
    "RagSpec.reranker": "A cross-encoder that orders the passages found: a name on the Hub, or a folder.",
    "RagSpec.rewrite": "Whether the model may write a search query from the question first.",
    "RagSpec.qdrant": "A Qdrant collection that is filled already, made with the model under `embeddings`.",
    "QdrantSpec.url": "The server's address, such as http://localhost:6333. Without a port it is 6333.",
    "QdrantSpec.collection": "The collection's name.",
    "QdrantSpec.text": "The payload's key of the passage, such as page_content.",
    "QdrantSpec.document": "The payload's key of the source, such as metadata.source; a payload may lack it.",
    "QdrantSpec.vector": "The vector's name, where the collection's vectors have names.",
    "QdrantSpec.api_key_env": "The environment variable that holds the key. Never the key itself.",
    "QdrantSpec.timeout": "Seconds.",
    "OptimiseSpec.methods": "Who searches: our own race of proposals, GEPA, or DSPy's MIPROv2 (extra `mipro`).",
    "OptimiseSpec.requests": "What each search may spend, answers and proposals together. 0 turns it off.",
    "OptimiseSpec.proposer": "Who writes the proposals; the task's model where it is left out.",
    "TrafficSpec.requests_per_month": "How often the task is asked in a month.",
    "TrafficSpec.months": "For how many months it will be asked.",
    "PricesSpec.gpu_hour": "An hour of the machine that runs the model.",
    "PricesSpec.input_per_million": "A million tokens in.",
    "PricesSpec.output_per_million": "A million tokens out.",
    "PricesSpec.label": "One more labelled row.",
    "GateSpec.min_gain": "The gain that the tuned model must surely have, as a difference of scores.",
    "GateSpec.max_forgetting": "The loss on general benchmarks that is allowed, pooled, as a difference of scores.",
    "GateSpec.benchmarks": "The loss that is allowed on single benchmarks, by name: {grammar: 0.1}. Those not named gate nothing.",
    "GateSpec.max_cost_per_1k": "What a thousand requests may cost.",
    "GeneralSpec.suite": "quick, standard, hub, an lm-eval task or group by name, a folder of lm-eval task files, or a list of such.",
    "GeneralSpec.limit": "Of each task that is not built in, so many items are asked, drawn by the seed (all; 250 of each of hub).",
    "GeneralSpec.confirm": "What repaired weights are confirmed on: the half of the suite that did not choose them, or standard.",
    "GeneralSpec.trust_task_code": "Let the task files of a named folder run their own Python code (`!function`).",
}
EXAMPLES = {
    "ModelSpec.model_name_or_path": [DEMO_MODEL],
    "EmbeddingsSpec.model_name_or_path": [EMBEDDING_MODEL],
    "TaskSpec.instruction": ["instruction.md"],
    "TaskSpec.target": [0.85],
}


class AsRead(GenerateJsonSchema):
    """Numbers in quotes are read as numbers: YAML 1.1 takes 1e-6, without a dot, for text."""

    def int_schema(self, schema: IntSchema) -> JsonSchemaValue:
        return {**super().int_schema(schema), "type": ["integer", "string"], "pattern": r"^\s*[-+]?\d"}

    def float_schema(self, schema: FloatSchema) -> JsonSchemaValue:
        return {**super().float_schema(schema), "type": ["number", "string"], "pattern": r"^\s*[-+]?(\.?\d|[iI][nN][fF])"}


def task_schema() -> dict[str, Any]:
    """The schema (draft 2020-12). `train` may hold anything: its keys are the trainer's, and `published_schema` adds them."""
    schema = TaskSpec.model_json_schema(by_alias=True, schema_generator=AsRead)
    models = schema["$defs"] | {"TaskSpec": schema}
    for name, body in models.items():
        _tidied(name, body)
    metric = schema["properties"]["metric"]
    schema["$defs"]["Metric"] = _metric(metric.pop("items")["oneOf"])
    del metric["type"]
    metric["anyOf"] = [{"$ref": "#/$defs/Metric"}, {"type": "array", "items": {"$ref": "#/$defs/Metric"}}]
    _by_engine(models["ModelSpec"])
    # `output` is read by the key's name in Python too.
    models["OutputSpec"]["properties"]["json_schema"] = {
        **models["OutputSpec"]["properties"]["schema"],
        "description": "Better written as `schema`.",
        "deprecated": True,
    }
    return {"$schema": DIALECT, "title": TITLE, **schema}


def _tidied(model: str, body: dict[str, Any]) -> None:
    """Without what pydantic makes up (titles), and with what an editor shows."""
    body.pop("title", None)
    if "description" in body:
        body["description"] = " ".join(body["description"].split())
    for name, one in body["properties"].items():
        one.pop("title", None)
        # A default that is a mapping would be typed out whole by an editor that completes the key.
        if isinstance(one.get("default"), dict | list) or one.get("default", "") is None:
            del one["default"]
        key = f"{model}.{name}"
        if key in MEANINGS:
            one["description"] = MEANINGS[key]
        if key in EXAMPLES:
            one["examples"] = EXAMPLES[key]


def _metric(families: list[dict[str, Any]]) -> dict[str, Any]:
    """One metric: a name (of one that needs no options), a function of the user's, or a mapping with options."""
    return {
        "anyOf": [
            {"enum": [name for name in NAMES if _stands_alone(name)]},
            {"type": "string", "pattern": r"^python:[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$"},
            {"type": "object", "required": ["name"], "oneOf": families},
        ]
    }


def _stands_alone(name: str) -> bool:
    try:
        plain_options(name)
    except ValueError:
        return False
    return True


def _by_engine(model: dict[str, Any]) -> None:
    """Keys that mean something to one engine only are underlined under the other, and a server needs its address."""
    model["if"] = {"properties": {"engine": {"const": "endpoint"}}, "required": ["engine"]}
    model["then"] = {"required": ["base_url"], "properties": dict.fromkeys(sorted(HERE_ONLY), False)}
    model["else"] = {"properties": dict.fromkeys(sorted(SERVED_ONLY), False)}
