"""Configuration of `caskd predict` and `caskd eval`: a field is a flag, its docstring the help."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

_SMALL = tyro.conf.arg(help_behavior_hint="(required, unless --next-token or --chain is given)")
_LARGE = tyro.conf.arg(help_behavior_hint="(required, unless --next-token is given)")

_MODEL_NEEDED = tyro.conf.arg(help_behavior_hint="(required, unless --backend server is given)")


RouterLabel = Literal["identical", "divergent", "gap", "acceptable"]

TokenRuleName = Literal[
    "spec",
    "chow",
    "diff",
    "opt",
    "token-v1",
    "token-v2",
    "token-v3",
    "entropy",
    "margin",
    "call",
    "router",
    "rsd",
]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Decode greedily in batches, and store every answer with its token log-probabilities."""

    model: Annotated[str, _MODEL_NEEDED] = ""
    """Model that answers: a folder or a hub id that transformers can open. With --backend server it
    is the tokenizer and config of the served model, and is needed to send token ids and to count
    FLOPs."""
    data: tuple[str, ...]
    """Files with the examples: JSONL, Parquet, Arrow or CSV."""
    out: str
    """Parquet file to write. Finished parts are kept in OUT.parts until all are done; rerun the
    same command to resume."""
    prompt_column: str = "prompt"
    """Column with the question."""
    response_column: str = "response"
    """Column with the expected answer."""
    references_column: str = "references"
    """Column with a list of accepted answers, for questions that have several."""
    options_column: str = "options"
    """Column with the options of a multiple-choice question: a list of texts as the model would
    write them (A, B, C, D). Their probabilities are stored."""
    messages_column: str = "messages"
    """Column with a chat; its last assistant turn is the expected answer."""
    chat_template: str | None = None
    """File with a chat template (Jinja) to use instead of the model's own."""
    template_arguments: str | None = None
    """Arguments of the chat template, a JSON object such as {"enable_thinking": false}."""
    train_template_tokens: bool = False
    """As in the capture: the model writes itself what the template writes at the start of a
    reply, such as an empty think block."""
    task_column: str = "task"
    """Column with the task name, for results per task."""
    on_bad_text: Literal["error", "replace"] = "error"
    """Policy for JSON text with half of a surrogate pair: stop, or write U+FFFD in its place."""
    task_metric: tuple[str, ...] = ()
    """Metric of answers: NAME=METRIC for one task, METRIC for every task without a built-in
    default; repeat the flag. Metrics: exact_match, accuracy, token_f1, numeric_match, chrf, bleu,
    and bleu-zh or another tokenizer of sacrebleu."""
    stop: tuple[str, ...] = ()
    """End an answer before this text; repeat the flag. \\n is a line break."""
    max_new_tokens: int = 128
    """Maximum answer length in tokens, the end-of-sequence token included."""
    batch_size: int = 16
    """Examples decoded at once; answers do not depend on it, up to rounding."""
    hidden: int | None = None
    """Store the hidden state of each prompt's last token after this layer: -1 is the last layer, 0
    the embedding."""
    backend: Literal["transformers", "vllm", "server"] = "transformers"
    """What answers: transformers in this process, a vLLM engine that this process starts, or an
    OpenAI-compatible server at --url."""
    tensor_parallel: int = 1
    """With --backend vllm: number of devices over which each weight is divided."""
    url: tuple[str, ...] = ()
    """With --backend server: URL of the server, all before /v1; repeat the flag for servers of one
    model, which share the examples. A token of access is read from CASKD_SERVER_TOKEN."""
    api: Literal["completions", "chat"] = "completions"
    """With --backend server: /v1/completions, which gets token ids (without --model the prompt's
    text); or /v1/chat/completions, where the server renders messages itself and a prompt is one
    user turn."""
    served_model: str | None = None
    """With --backend server: name of the model there, if the server lists several."""
    server_concurrency: int = 32
    """With --backend server: requests that each URL has at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto uses the format of the files."""
    device: str = "auto"
    """Device to run on: cpu, cuda, cuda:1; auto uses a GPU if there is one."""
    worker: int = 0
    """Index of this worker, from 0. Each worker answers its own part; the last one to finish joins
    the parts."""
    num_workers: int = 1
    """Number of workers that share the examples; start all of them with otherwise equal flags."""
    limit: int | None = None
    """Answer only the first LIMIT examples."""
    large: str | None = None
    """Large model of a token cascade, with --token-rule: both models write each answer together.
    It must share the vocabulary, the end-of-sequence ids and the chat template of --model."""
    token_rule: TokenRuleName | None = None
    """With --large: at which tokens the large model's choice replaces the small model's."""
    alpha: float | None = None
    """Cost of a token of the large model, from 0 to 1, for the rules chow, diff, opt and token-v1
    to token-v3. Default: 0.2."""
    threshold: float | None = None
    """The large model chooses a token if the small model's entropy is at least this many nats
    (entropy), or its two likeliest tokens are at most this many nats apart (margin), or the
    router's probability is at least this (router; default: the router's own threshold)."""
    router: str | None = None
    """With --token-rule router: folder of caskd router fit for --model."""
    p_th: float | None = None
    """The large model's token is kept if the small model gives it at least this probability (rsd).
    Default: 0.01."""
    call_threshold: float | None = None
    """The large model chooses a token if the score of the small model's CALL token is at least this
    many nats (call)."""
    call_budget: float | None = None
    """In place of --call-threshold: the share of tokens to give to the large model. The threshold
    is measured on the small model's answers to up to 32 prompts of --data, before the first
    answer."""
    gamma: int | None = None
    """Tokens that the small model drafts for one forward pass of the large one, for rules that read
    both models. Default: 5."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure cascades: one curve for each small model against the same large model."""

    small: Annotated[tuple[str, ...], _SMALL] = ()
    """Predictions of a small model (from `caskd predict`), FILE or NAME=FILE; repeat the flag to
    compare several. Files with the same NAME are training seeds of one arm, and intervals then
    cover seeds too: list the seeds of each arm in the same order."""
    large: Annotated[str, _LARGE] = ""
    """Predictions of the large model on the same examples."""
    token_cascade: tuple[str, ...] = ()
    """Predictions of a token cascade (caskd predict --large) on the same examples, FILE or
    NAME=FILE: one point beside the curves; repeat the flag. With --next-token: of the rule spec,
    for the acceptance in its own texts."""
    outcomes: tuple[str, ...] = ()
    """Outcome table instead of predictions: JSONL, CSV, Parquet or Arrow; repeat the flag. Columns:
    example_id, model, quality, and where known score or confidence, cost, latency_ms,
    prompt_tokens, output_tokens, task. --small, --chain and --large then take model names."""
    out: str
    """Folder for the report: figures, tables and index.html."""
    rule: tuple[str, ...] = ()
    """Deferral rule; repeat the flag to compare several, the first is the main one: average, sum,
    min, max, quantile-Q, first-token, option, entropy, margin; fitted on the calibration split:
    edge-inference, post-hoc-mlp, p-ik, p-ik-and-p-t, hidden-router, prompt-router. Default:
    average, then every other rule whose columns the predictions have."""
    calibration: float | None = None
    """Fraction of examples held out to fit rules and choose thresholds; all reported numbers use
    the remainder."""
    calibration_seed: int = 0
    """Random seed of the calibration split."""
    calibration_small: tuple[str, ...] = ()
    """Instead of a fraction: predictions of each small model on other examples, in the order of
    --small."""
    calibration_large: str | None = None
    """Predictions of the large model on the examples of --calibration-small."""
    chain: tuple[str, ...] = ()
    """Predictions of one model of a chain of three or more, each with its own threshold; repeat the
    flag from the smallest model up. --large is the last model."""
    target_quality: float | None = None
    """Quality at which to compare the costs of the small models' cascades. Default: halfway between
    the first --small (mean over its seeds) and the large model."""
    operating_point: str | None = None
    """Choose small model, rule and threshold under a bound, and write them to cascade.json:
    quality>=0.86, cost<=5e8 or deferral_rate<=0.3. Cost is in FLOPs per token, with --prices in
    money per example, with --outcomes in the unit of the column cost."""
    guarantee: str | None = None
    """Choose a threshold for each small model and rule on the calibration split so that the mean
    loss of later questions is bounded: risk<=.05 or regret<=.05. Risk is 1 - quality of an answer
    that the small model keeps, regret by how much the large model's is better."""
    prices: str | None = None
    """Price list, JSON or TOML: for each model name the prices of a million prompt tokens (prompt)
    and of a million output tokens (output)."""
    bleu: str | None = None
    """Plot corpus BLEU along the curve, with this tokenizer of sacrebleu: 13a, zh, ja-mecab, ..."""
    task_metric: tuple[str, ...] = ()
    """Rescore the stored answers: NAME=METRIC for one task, METRIC for all others; tasks without a
    metric here keep their stored quality. Metrics: as in caskd predict."""
    data: tuple[str, ...] = ()
    """Data files passed to caskd predict: shows questions beside answers; prompt-router needs
    them."""
    prompt_column: str = "prompt"
    """Column of --data with the question."""
    messages_column: str = "messages"
    """Column of --data with a chat."""
    next_token: str | None = None
    """Store, instead of predictions: measure the cascade of its teacher with each --student token
    by token under teacher forcing, without generation."""
    student: tuple[str, ...] = ()
    """With --next-token: a student, DIR or NAME=DIR; repeat the flag to compare several. Folders
    with the same NAME are training seeds of one arm, as with --small."""
    router: str | None = None
    """With --next-token: folder of caskd router fit for the --student: one more rule. All rules are
    then measured only on questions that the router was not fitted on."""
    teacher_parameters: int | None = None
    """With --next-token: parameters that a token of the teacher activates, for the mean of both
    models."""
    accept_imported: bool = False
    """With --next-token: measure on a store that caskd import made of another program's rows."""
    limit: int | None = None
    """With --next-token: use only the first LIMIT examples of the store."""


@dataclass(frozen=True, kw_only=True)
class RouterFitConfig:
    """Fit a router of tokens for one student on a store's own texts, without the teacher."""

    store: str
    """Directory or URL of the store."""
    student: str
    """Folder of the student that the router is for."""
    label: RouterLabel
    """Tokens that the large model should choose: the student's likeliest token is not the teacher's
    (identical); is none that the teacher finds nearly as likely, either (divergent); is wrong where
    the teacher's is right (gap); is neither right nor such a token (acceptable)."""
    out: str
    """Folder to write; it must be new or empty."""
    recall: float = 0.95
    """Share of these tokens that the threshold must find."""
    seed: int = 0
    """Seed of weights, order and dropout."""
    limit: int | None = None
    """Use only the first LIMIT examples of the store."""


@dataclass(frozen=True, kw_only=True)
class StoreAuditConfig:
    """Measure how far a store's texts are from a student, before it trains on them."""

    store: tyro.conf.Positional[str]
    """Directory or URL of the store."""
    student: str
    """Student whose probability of each label is measured, by one forward pass: a folder or a hub
    id. It must have the store's vocabulary."""
    limit: int | None = None
    """Use only the first LIMIT examples of the store."""
    device: str = "auto"
    """Device to run on: cpu, cuda, cuda:1; auto uses a GPU if there is one."""
    json: bool = False
    """Print one JSON object instead of text."""
