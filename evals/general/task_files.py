"""A folder of lm-eval task files, read as hostile input.

A task file can run code in more ways than its `!function` tags: templates (`prepare` puts them into Jinja's sandbox), data formats that
unpickle, metrics and prompts that are fetched as programs. Without trust a file may use the keys, formats and metrics that are listed
here, all of which are data; with it, it is lm-eval's alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evals.engines.machine import cache_folder
from evals.errors import AdvisorError, Problem, ProblemsError, did_you_mean
from evals.records import content_hash, file_hash

FORMATS = ("json", "csv", "parquet", "arrow", "text")
METRICS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "f1", "mcc", "brier_score", "bleu", "chrf", "ter")
OUTPUTS = ("multiple_choice", "generate_until", "loglikelihood")
KEYS = (
    *("task", "task_alias", "tag", "include", "metadata", "output_type", "description", "apply_chat_template"),
    *("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "test_split", "fewshot_split"),
    *("doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter", "fewshot_delimiter", "gen_prefix"),
    *("num_fewshot", "fewshot_config", "generation_kwargs", "repeats", "metric_list", "filter_list"),
    *("should_decontaminate", "doc_to_decontamination_query"),
)
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
TRUST = "general: {trust_task_code: true} runs such files as they are, with all that they import"
MEND = f"mend these. A folder's code is not run unless you trust it by name ({TRUST})."


@dataclass(frozen=True)
class TaskFile:
    """A task as lm-eval takes it, with the paths of its data made absolute. `digest` is of the file and its local data."""

    path: Path
    name: str
    config: dict[str, Any]
    chat: bool
    digest: str


def task_files(folder: Path, *, trust_code: bool = False) -> list[TaskFile]:
    """The tasks of a folder (`*.yaml` with a `task:`), by file name. Raises ProblemsError with every fault of all files."""
    problems: list[Problem] = []
    found: list[TaskFile] = []
    for path in sorted(folder.glob("*.yaml")):
        config, faults = _read(path, folder, trust_code, ())
        if not faults and not isinstance(config.get("task"), str):
            continue  # a group, or a part that others include
        config, more = _with_data(config, path) if not faults else (config, [])
        problems += [*faults, *more]
        if not faults and not more:
            found.append(_task_file(path, config))
    if problems:
        raise ProblemsError(problems, do=MEND)
    if not found:
        raise AdvisorError("there is no lm-eval task in this folder", where=str(folder), do="put its `<task>.yaml` there.")
    return found


def _task_file(path: Path, config: dict[str, Any]) -> TaskFile:
    chat = config.pop("apply_chat_template", False) is True
    files = config["dataset_kwargs"]["data_files"].values() if config.get("dataset_path") in FORMATS else []
    data = [file_hash(Path(one)) for ones in files for one in ones]
    return TaskFile(path, config["task"], config, chat, content_hash([file_hash(path), *data]))


def _read(path: Path, folder: Path, trust_code: bool, above: tuple[Path, ...]) -> tuple[dict[str, Any], list[Problem]]:
    """One file with what it includes (its own keys win), and its faults."""
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        return {}, [Problem(file, mark.line + 1 if mark else 0, "", f"not valid YAML: {what}")]
    if not isinstance(node, yaml.MappingNode):
        return {}, [Problem(file, 1, "", "a task file is a mapping of keys, such as `task:` and `doc_to_text:`")]
    tags = [] if trust_code else [_tag_problem(file, one) for one in _nodes(node) if one.tag.startswith("!")]
    if tags:
        return {}, tags
    try:
        config = _trusted(path) if trust_code else yaml.safe_load(text)
    except Exception as error:  # a trusted file's own code among it
        return {}, [Problem(file, 0, "", f"cannot be read: {type(error).__name__}: {str(error)[:200]}")]
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    if trust_code:
        return config, []
    if "group" in config:
        return {}, []  # of tasks that are benchmarks by themselves
    faults = _faults(file, config, lines)
    merged: dict[str, Any] = {}
    includes = config.pop("include", [])
    for one in includes if isinstance(includes, list) else [includes]:
        target = (path.parent / str(one)).resolve()
        if not target.is_relative_to(folder) or target in (*above, path) or not target.is_file():
            faults.append(Problem(file, lines.get("include", 0), "include", f"{one!r} is no other file of this folder"))
            continue
        part, more = _read(target, folder, trust_code, (*above, path))
        merged |= part
        faults += more
    return {**merged, **config}, faults


def _trusted(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    found: dict[str, Any] = load_yaml(path, resolve_func=True)
    return found


def _nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """The node and all below it; a node that an alias names is seen once, since an alias may lead back up."""
    seen, todo = set[int](), [node]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, yaml.MappingNode):
            todo += [part for pair in one.value for part in pair]
        elif isinstance(one, yaml.SequenceNode):
            todo += one.value


def _tag_problem(file: str, node: yaml.Node) -> Problem:
    what = f"the tag {node.tag}" + (f" {node.value}" if isinstance(node, yaml.ScalarNode) else "")
    return Problem(file, node.start_mark.line + 1, "", f"{what} runs code that lies in the folder")


def _faults(file: str, config: dict[str, Any], lines: dict[str, int]) -> list[Problem]:
    def fault(key: str, message: str) -> Problem:
        return Problem(file, lines.get(key, 0), key, message)

    faults = [
        fault(str(key), f"unknown key, or one that may run code{did_you_mean(str(key), KEYS)}")
        for key in config
        if key not in KEYS
    ]
    if "task" in config and not (isinstance(config["task"], str) and config["task"].strip()):
        faults.append(fault("task", "must be the name of one task"))
    if "output_type" in config and config["output_type"] not in OUTPUTS:
        faults.append(fault("output_type", f"must be one of {', '.join(OUTPUTS)}: an item needs a score of its own"))
    data = config.get("dataset_path")
    # What lies at such a path here would be taken for the Hub's.
    of_hub = isinstance(data, str) and HUB_NAME.fullmatch(data) and not Path(data).exists()
    if data is not None and data not in FORMATS and not of_hub:
        faults.append(fault("dataset_path", f"must be {', '.join(FORMATS)} or the name of a data set of the Hub"))
    more = config.get("dataset_kwargs")
    if more is not None and not (isinstance(more, dict) and set(more) <= {"data_files"}):
        faults.append(fault("dataset_kwargs", "may hold data_files only"))
    metrics = config.get("metric_list", [])
    for one in metrics if isinstance(metrics, list) else [metrics]:
        if not isinstance(one, dict) or one.get("metric") not in METRICS or one.get("hf_evaluate"):
            faults.append(fault("metric_list", f"each must be a mapping whose `metric` is one of {', '.join(METRICS)}"))
    return faults


def _with_data(config: dict[str, Any], path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Data files relative to the task file, not to where the command was called; read into a cache of ours."""
    if config.get("dataset_path") not in FORMATS:
        if isinstance(config.get("dataset_path"), str) or callable(config.get("custom_dataset")):
            return config, []
        return config, [Problem(str(path), 0, "dataset_path", "this key is required")]
    given = (config.get("dataset_kwargs") or {}).get("data_files")
    named = given if isinstance(given, dict) else {"test": given}
    problems, files = [], dict[str, list[str]]()
    for split, ones in named.items():
        for one in ones if isinstance(ones, list) else [ones]:
            target = path.parent / str(one)
            if not isinstance(one, str) or "://" in one or not target.is_file():
                problems.append(Problem(str(path), 0, "dataset_kwargs.data_files", f"{one!r} is no file beside this one"))
            files.setdefault(str(split), []).append(str(target.resolve()))
    kwargs = {**(config.get("dataset_kwargs") or {}), "data_files": files, "cache_dir": str(cache_folder() / "datasets")}
    return {**config, "dataset_kwargs": kwargs}, problems
