"""What `caskd predict` and `caskd eval` are told: each field is a flag, its docstring the help."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Decode greedily, in batches, and store every answer with its token log-probabilities."""

    model: str
    """The model that answers: a folder or a hub id that transformers can open."""
    data: tuple[str, ...]
    """Files with the examples: JSONL, Parquet, Arrow or CSV."""
    out: str
    """Parquet file to write. Finished parts wait in OUT.parts: the same command continues after a
    kill."""
    prompt_column: str = "prompt"
    """Column with the question."""
    response_column: str = "response"
    """Column with the expected answer."""
    references_column: str = "references"
    """Column with a list of answers that are all right, where there are several."""
    options_column: str = "options"
    """Column with the options of a multiple-choice question, a list of texts as the model would
    write them (A, B, C, D): their probabilities are stored."""
    messages_column: str = "messages"
    """Column with a chat, whose last assistant turn is the expected answer."""
    task_column: str = "task"
    """Column with the name of the task, for figures per task."""
    task_metric: tuple[str, ...] = ()
    """How answers are scored: NAME=METRIC for a task, METRIC for all that have no line of their own
    in caskd's table; repeat the flag. exact_match, accuracy, token_f1, numeric_match, chrf, bleu,
    and bleu-zh or another tokenizer of sacrebleu."""
    stop: tuple[str, ...] = ()
    """An answer ends before this text; repeat the flag. \\n is a line break."""
    max_new_tokens: int = 128
    """Longest answer in tokens, the end-of-sequence token included."""
    batch_size: int = 16
    """Examples decoded at once; the answers do not depend on it, up to rounding."""
    hidden: int | None = None
    """Store the hidden state of each prompt's last token after this layer: -1 the last, 0 the
    embedding."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto keeps that of the files."""
    device: str = "auto"
    """Where to run: cpu, cuda, cuda:1; auto takes the GPU where there is one."""
    worker: int = 0
    """Number of this worker, from 0; each answers its own part, and whoever sees all parts joins
    them."""
    num_workers: int = 1
    """Workers that share the examples; give all of them the same flags otherwise."""
    limit: int | None = None
    """Answer only the first so many examples."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure cascades: one curve for each small model against the same large one."""

    small: tuple[str, ...] = ()
    """Predictions of a small model (from `caskd predict`), FILE or NAME=FILE; repeat the flag to
    compare several. Files of one NAME are training seeds of the same arm, and intervals then hold
    over seeds too: give the seeds of each arm in the same order."""
    large: str = ""
    """Predictions of the large model on the same examples."""
    out: str
    """Folder for the report: figures, tables and index.html."""
    rule: tuple[str, ...] = ()
    """Deferral rule; repeat the flag to compare several, the first is that of the main figures:
    average, sum, min, max, quantile-Q, first-token, option, entropy, margin; fitted on the
    calibration split: edge-inference, post-hoc-mlp, p-ik, p-ik-and-p-t, hidden-router,
    prompt-router. By default average, and every other that the predictions have the columns for."""
    calibration: float | None = None
    """Share of the examples that fits rules and chooses thresholds; all figures are of the rest."""
    calibration_seed: int = 0
    """Draws another calibration split."""
    calibration_small: tuple[str, ...] = ()
    """Instead of a share: predictions of each small model on other examples, in the order of
    --small."""
    calibration_large: str | None = None
    """Predictions of the large model on those."""
    chain: tuple[str, ...] = ()
    """Predictions of a model of a chain of three or more, each with a threshold of its own: repeat
    the flag from the smallest on; --large is the last."""
    target_quality: float | None = None
    """Compare the small models' costs where their cascades reach this quality; by default halfway
    between the first --small, mean over its seeds, and the large model."""
    operating_point: str | None = None
    """Choose small model, rule and threshold, and write them to cascade.json: quality>=0.86,
    cost<=5e8 or deferral_rate<=0.3. Cost is in FLOPs per token, or with --prices in money per
    example."""
    prices: str | None = None
    """Price list, JSON or TOML: for each model's name prompt and output, each the price of a
    million tokens."""
    bleu: str | None = None
    """Draw corpus BLEU along the curve, with this tokenizer of sacrebleu: 13a, zh, ja-mecab, ..."""
    task_metric: tuple[str, ...] = ()
    """Score the stored answers anew: NAME=METRIC for a task, METRIC for all others; tasks that are
    not meant keep their quality. The metrics are those of caskd predict."""
    data: tuple[str, ...] = ()
    """The files that caskd predict was given: shows the questions beside the answers, and
    prompt-router reads them."""
    prompt_column: str = "prompt"
    """Column of --data with the question."""
    messages_column: str = "messages"
    """Column of --data with a chat."""
    next_token: str | None = None
    """Instead of predictions, a store: measures the cascade of its teacher with each --student
    token by token, under teacher forcing, without generating."""
    student: tuple[str, ...] = ()
    """With --next-token: a student, DIR or NAME=DIR; repeat the flag to compare several. Folders of
    one NAME are training seeds of the same arm, as with --small."""
    limit: int | None = None
    """With --next-token: only the first so many examples of the store."""
