"""The pools: their public data sets, the sources and licences, and the split into parts."""

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Source:
    """A public data set, with the licence to read before using it."""

    files: tuple[str, ...]
    url: str
    licence: str


SOURCES = MappingProxyType(
    {
        "sst2": Source(
            files=("sst2/train.jsonl", "sst2/dev.jsonl"),
            url="https://nlp.stanford.edu/sentiment/ (GLUE's SST-2, phrases)",
            licence="no explicit licence; research use, cite Socher et al. 2013",
        ),
        "agnews": Source(
            files=("agnews/train.jsonl",),
            url="http://groups.di.unipi.it/~gulli/AG_corpus_of_news_articles.html",
            licence="non-commercial research use, with attribution",
        ),
        "scan": Source(
            files=("scan/simple_train.jsonl", "scan/simple_test.jsonl"),
            url="https://github.com/brendenlake/SCAN",
            licence="BSD",
        ),
        "instruction_induction": Source(
            files=("instruction_induction/train.jsonl",),
            url="https://github.com/orhonovich/instruction-induction",
            licence="Apache-2.0",
        ),
        "boolq": Source(
            files=("boolq/train.jsonl",),
            url="https://github.com/google-research-datasets/boolean-questions",
            licence="CC BY-SA 3.0",
        ),
        "rte": Source(
            files=("rte/train.jsonl", "rte/val.jsonl"),
            url="https://gluebenchmark.com (RTE)",
            licence="no explicit licence; research use",
        ),
        "openbookqa": Source(
            files=("openbookqa/train.jsonl", "openbookqa/dev.jsonl"),
            url="https://github.com/allenai/OpenBookQA",
            licence="Apache-2.0 (the code's; the data name none)",
        ),
        "e2e_nlg": Source(
            files=("e2e_nlg/train.jsonl",),
            url="https://github.com/tuetschek/e2e-dataset",
            licence="CC BY-SA 4.0",
        ),
        "wikitext2": Source(
            files=("wikitext2_valid_test/valid.txt",),
            url="https://huggingface.co/datasets/Salesforce/wikitext",
            licence="CC BY-SA 3.0",
        ),
        "wikipedia": Source(
            files=("c4_wiki_demo/wiki_demo.txt",),
            url="https://dumps.wikimedia.org (a few articles, one a line)",
            licence="CC BY-SA",
        ),
        "c4": Source(
            files=("c4_wiki_demo/c4_300.jsonl",),
            url="https://huggingface.co/datasets/allenai/c4 (its first few hundred documents)",
            licence="ODC-BY",
        ),
    }
)
"""Name -> files below --data, source and licence."""


PARTS = ("test", "calibration", "teacher", "pretrain", "student")
"""An example belongs to one part. The teacher is not trained on the student's part, so its outputs
there are those on new data."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Tasks that one small model learns together."""

    shares: MappingProxyType[str, tuple[float, ...]]
    """Source -> its fraction for each of `PARTS`; the rest is unused."""
    max_words: int
    """Longer prompts are truncated; longer paragraphs of plain text are cut into pieces."""
    is_text: bool = False
    """Whether the pool is plain text, evaluated by its next tokens without generation."""
    eos: bool = True
    """Whether a response ends with EOS. Not for single labels: that row would always be right."""
    max_new_tokens: int = 1
    """Limit of an answer."""


_TOPICS = Pool(
    shares=MappingProxyType(
        {
            "sst2": (0.03, 0.022, 0.45, 0.06, 0.09),
            "agnews": (0.15, 0.05, 0.40, 0.09, 0.31),
        }
    ),
    max_words=20,
    eos=False,
)
POOLS = MappingProxyType(
    {
        "classification": _TOPICS,
        "classification-unread": _TOPICS,
        "generation": Pool(
            shares=MappingProxyType(
                {
                    "scan": (0.05, 0.02, 0.30, 0.08, 0.20),
                    "instruction_induction": (0.06, 0.04, 0.45, 0.12, 0.33),
                }
            ),
            max_words=40,
            max_new_tokens=60,
        ),
        "pretrained": Pool(
            shares=MappingProxyType(
                {
                    "boolq": (0.25, 0.05, 0.30, 0.10, 0.30),
                    "rte": (0.25, 0.05, 0.30, 0.10, 0.30),
                    "openbookqa": (0.20, 0.05, 0.35, 0.10, 0.30),
                    "e2e_nlg": (0.20, 0.05, 0.35, 0.10, 0.30),
                }
            ),
            max_words=1000,
            max_new_tokens=80,
        ),
        "mixed": Pool(
            shares=MappingProxyType(
                {
                    "instruction_induction": (0.05, 0.005, 0.17, 0.03, 0.14),
                    "openbookqa": (0.16, 0.02, 0.45, 0.09, 0.28),
                    "agnews": (0.06, 0.01, 0.15, 0.04, 0.15),
                    "sst2": (0.01, 0.001, 0.03, 0.006, 0.025),
                }
            ),
            max_words=60,
            max_new_tokens=40,
        ),
        "text": Pool(
            shares=MappingProxyType(
                dict.fromkeys(("wikitext2", "wikipedia", "c4"), (0.2, 0.0, 0.45, 0.1, 0.25))
            ),
            max_words=100,
            is_text=True,
        ),
    }
)
