"""Small sets of questions for zero-shot tasks, in the forms that the pages and the tests name."""

import json
from pathlib import Path

WORDS = ["value", "object", "a string", "names", "int"]
CHOICES = {"text": WORDS[:4], "label": ["A", "B", "C", "D"]}


def boolq(k, word):
    return {"passage": f"The {word}.", "question": f"is it {word}", "label": k % 2}


def rte(k, word):
    return {"sentence1": f"The {word}.", "sentence2": f"It is {word}.", "label": k % 2, "idx": k}


def hellaswag(k, word):
    started = {"activity_label": word, "ctx_a": f"See {word}.", "ctx_b": "then"}
    return {**started, "endings": WORDS[:4], "label": str(k % 4)}


def winogrande(k, word):
    told = {"sentence": f"The {word} and _ are one.", "answer": str(1 + k % 2)}
    return {**told, "option1": word, "option2": "all"}


def arc(k, word):
    return {"question": f"Which is {word}?", "choices": CHOICES, "answerKey": "ABCD"[k % 4]}


def openbookqa(k, word):
    return {"question_stem": f"It is {word}", "choices": CHOICES, "answerKey": "ABCD"[k % 4]}


SETS = {"boolq": boolq, "rte": rte, "hellaswag": hellaswag, "winogrande": winogrande}
SETS |= {"arc_easy": arc, "arc_challenge": arc, "openbookqa": openbookqa}


def write_sets(folder: Path) -> Path:
    """A file of JSON lines a task, five questions each."""
    folder.mkdir(exist_ok=True)
    for name, row in SETS.items():
        rows = [row(k, word) for k, word in enumerate(WORDS)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder
