"""What the ledger says about a run, a prompt and an image, in short lines of text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal, TypeVar

from segsmith.memory.ledger import (
    DecisionKind,
    DecisionRow,
    LabelRow,
    Ledger,
    PromptRow,
    VerdictRow,
)
from segsmith.reasons import VerdictReason

Standing = Literal["any", "accepted", "rejected"]

FOUND = {
    "sam:ok": "SAM, from points on the seed",
    "seed": "the patch scores alone, without SAM",
    "sam:no_candidates": "SAM offered no outline",
    "sam:empty": "SAM's outline was empty",
    "sam:flood": "rejected: SAM took the background",
    "sam:coverage": "rejected: SAM missed most of the seed",
    "sam:overlap": "rejected: SAM ran into another class",
    "sam:score": "rejected: SAM's outlines scored too low",
    "clip:doubted": "left unknown: CLIP does not recognise the class in this part alone",
}
"""How a part of a mask was found, by the key it is counted under; a part without an outline is unknown (255)."""
LABEL_SOURCES = {"prompt": "requested", "clip": "CLIP", "relabel": "ViT"}
"""Source of labels in the ledger -> its name for the reviewer."""
CRITIQUE = {
    "class_cosine": "CLIP's text cosine to the class {:.3f}",
    "relevance_margin": "{:.3f} above every class it does not name",
    "rationality": "plausibility according to the LLM {:.2f}",
}
"""What the critique of a prompt measured, in words."""
TOP_CLASSES = 3

Row = TypeVar("Row")


class Rows(Mapping[str, Row]):
    """Rows by id. One that is asked for is read alone, and all of them once they are gone through."""

    def __init__(self, one: Callable[[str], Row], every: Callable[[], Mapping[str, Row]]) -> None:
        """`one` raises `KeyError` for an id without a row."""
        self._one = one
        self._read = every
        self._known: dict[str, Row] = {}

    @cached_property
    def _every(self) -> Mapping[str, Row]:
        return self._read()

    def __getitem__(self, key: str) -> Row:
        if "_every" in vars(self):
            return self._every[key]
        if key not in self._known:
            self._known[key] = self._one(key)
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._every)

    def __len__(self) -> int:
        return len(self._every)


class RunFacts:
    """One reading of a run's ledger; make a new one after each decision. `size` is the images' side in pixels.

    What is said about one prompt or image reads its rows alone. Counts and numbers within a class read all rows.
    """

    def __init__(self, ledger: Ledger, classes: Sequence[str], quotas: Mapping[str, int], size: int) -> None:
        self._area_px = size * size
        self.classes = tuple(classes)
        self._ledger = ledger
        self._quotas = quotas
        self.prompts = Rows(ledger.prompt, lambda: {p.id: p for p in ledger.prompts()})
        self.images = Rows(ledger.image, lambda: {row.id: row for row in ledger.images()})
        self.verdicts = Rows(self._verdict, self._verdicts)
        """Image id -> its verdict. A reviewer's decision counts at once, before the judge has applied it."""
        self.labels = {
            source: Rows(partial(self._label, source), partial(ledger.labels, source))
            for source in ("prompt", "clip", "relabel")
        }
        """Source -> image id -> labels."""
        self._masks = Rows(ledger.mask, ledger.masks)

    def _verdict(self, image_id: str) -> VerdictRow:
        return _decided(self._ledger.verdict(image_id), self._ledger.decision("verdict", image_id))

    def _verdicts(self) -> dict[str, VerdictRow]:
        decisions = self._ledger.decisions("verdict")
        return {
            row.image_id: _decided(row, decisions.get(row.image_id)) for row in self._ledger.each_verdict()
        }

    def _label(self, source: str, image_id: str) -> LabelRow:
        return self._ledger.labels_of(source, [image_id])[image_id]

    @cached_property
    def of_class(self) -> dict[str, list[str]]:
        """Class -> its images in the order they were drawn."""
        groups: dict[str, list[str]] = defaultdict(list)
        for row in self.images.values():
            groups[self.target(row.id)].append(row.id)
        return groups

    def target(self, subject: str) -> str:
        """The class an image was drawn for, or a prompt written for."""
        prompt = subject if subject in self.prompts else self.images[subject].prompt_id
        return self.prompts[prompt].class_name

    # -- the run ----------------------------------------------------------------------------------

    def status(self, class_name: str = "") -> list[str]:
        """One line per class, or for one class: prompts, images drawn and accepted, and rejections by reason."""
        return [self._class_line(name) for name in ([class_name] if class_name else self.classes)]

    def behind(self) -> list[str]:
        """Classes under their quota, the furthest behind first."""
        short = {name: self._quotas[name] - self._accepted(name) for name in self.classes}
        lines = [
            f"{name}: {self._accepted(name)} of {self._quotas[name]} accepted, {missing} more needed"
            for name, missing in sorted(short.items(), key=lambda item: -item[1])
            if missing > 0
        ]
        return lines or ["no class is behind: every class has reached its quota"]

    def _accepted(self, name: str) -> int:
        return sum(i in self.verdicts and self.verdicts[i].accepted for i in self.of_class[name])

    def _class_line(self, name: str) -> str:
        mine = [p for p in self.prompts.values() if p.class_name == name]
        reasons = Counter(
            self.verdicts[i].reason
            for i in self.of_class[name]
            if i in self.verdicts and not self.verdicts[i].accepted
        )
        rejected = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        return (
            f"{name}: {len(mine)} prompts written, {sum(p.status == 'admitted' for p in mine)} admitted, "
            f"{len(self.of_class[name])} images drawn, {self._accepted(name)} of {self._quotas[name]} accepted"
            + (f"; rejected: {rejected}" if rejected else "")
        )

    # -- one image --------------------------------------------------------------------------------

    def nth_image(self, class_name: str, number: int, standing: Standing = "any") -> str | None:
        """The id of a class's `number`-th image (from 1, in the order of drawing) among those of a standing."""
        ids = [i for i in self.of_class[class_name] if standing == "any" or self.standing(i) == standing]
        return ids[number - 1] if 0 < number <= len(ids) else None

    def verdict_line(self, image_id: str) -> str:
        """The verdict with its reason and numbers, in one line."""
        verdict = self.verdicts.get(image_id)
        if verdict is None:
            return "not judged yet"
        scores = verdict.scores
        numbers = {
            "not_there": ("probability", "threshold"),
            "ok": ("probability", "threshold"),
            "duplicate": ("duplicate_cosine",),
            "blurred": ("sharpness",),
        }.get(verdict.reason, ())
        grounds = ", ".join(f"{key} {scores[key]:.3f}" for key in numbers if key in scores)
        words = VerdictReason.wording_of(verdict.reason) or verdict.reason
        return f"{'accepted' if verdict.accepted else 'rejected'}, {verdict.reason}: {words}" + (
            f" ({grounds})" if grounds else ""
        )

    def top_classes(self, image_id: str) -> list[tuple[str, float]]:
        """CLIP's most probable classes of the image, best first, always including the class it was drawn for."""
        scores = self.verdicts[image_id].scores if image_id in self.verdicts else {}
        ranked = sorted(
            ((k[2:], p) for k, p in scores.items() if k.startswith("p:")), key=lambda item: -item[1]
        )
        name = self.target(image_id)
        return ranked[:TOP_CLASSES] + [item for item in ranked[TOP_CLASSES:] if item[0] == name]

    def label_sources(self, image_id: str) -> dict[str, str]:
        """Source (prompt, CLIP, ViT, you) -> its labels with their probabilities."""
        lines: dict[str, str] = {}
        for source, spoken in LABEL_SOURCES.items():
            row = self.labels[source].get(image_id)
            if row is not None:
                shares = ", ".join(f"{c} {row.scores[c]:.2f}" for c in self.classes if c in row.scores)
                if source == "relabel" and self._ledger.decision("label", image_id):
                    lines |= {
                        spoken: f"overruled{f' ({shares})' if shares else ''}",
                        "you": ", ".join(row.classes),
                    }
                    continue
                both = "in prompt and image: " if source == "clip" else ""
                grounds = f" ({both}{shares})" if source != "prompt" and shares else ""
                lines[spoken] = f"{', '.join(row.classes) or 'none'}{grounds}"
        return lines

    def label_lines(self, image_id: str) -> list[str]:
        """`label_sources`, a line each."""
        return [f"{spoken:9} {line}" for spoken, line in self.label_sources(image_id).items()]

    def mask_shares(self, image_id: str) -> dict[str, float]:
        """Class, or ``unknown``, -> its share of the image's pixels; {} without a mask."""
        mask = self._masks.get(image_id)
        if mask is None:
            return {}
        shares = {name: count / self._area_px for name, count in mask.pixels.items() if count}
        return shares | {"unknown": mask.ignore_share}

    def mask_origin(self, image_id: str) -> str:
        """How the parts of a mask were found."""
        mask = self._masks.get(image_id)
        sources = mask.sources.items() if mask else ()
        parts = [(FOUND.get(key, key), count) for key, count in sources if isinstance(count, int)]
        return ", ".join(how if n == 1 else f"{how} ({n} parts)" for how, n in parts) or "no part was found"

    def mask_lines(self, image_id: str) -> list[str]:
        """The share of pixels of each class, and how the parts were found."""
        shares = self.mask_shares(image_id)
        if not shares:
            return ["no mask yet"]
        pixels = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        return [f"pixels: {pixels}", f"outlines: {self.mask_origin(image_id)}"]

    def prompt_grounds(self, prompt_id: str) -> dict[str, str]:
        """Title -> line: attributes, most similar prompt in memory, critique."""
        prompt = self.prompts[prompt_id]
        critique = prompt.critique
        about = [f"{name} {value}" for name, value in prompt.attributes.items() if value]
        nearest = "no prompt was in memory"
        if critique.get("nearest"):
            nearest = f"{critique['nearest']} (cosine {critique['nearest_cosine']:.3f})"
        numbers = [words.format(critique[key]) for key, words in CRITIQUE.items() if key in critique]
        return {
            "about": ", ".join([*about, f"round {prompt.round}", prompt.status]),
            "nearest": nearest,
            "critique": "; ".join([critique.get("problem") or "no objection", *numbers]),
        }

    def prompt_lines(self, prompt_id: str) -> list[str]:
        """Text, attributes, nearest prompt in memory, critique."""
        grounds = [f"{title}: {line}" for title, line in self.prompt_grounds(prompt_id).items()]
        return [self.prompts[prompt_id].text, *grounds]

    def prompt_life(self, prompt_id: str) -> dict[str, list[str]]:
        """Title -> lines: the history of a prompt, from the first draft to its images."""
        line = self._ancestors(prompt_id)
        children = [p for p in self.prompts.values() if p.parent_id == prompt_id]
        drawn = [row.id for row in self.images.values() if row.prompt_id == prompt_id]
        decided = [said for i in reversed(line) for said in self.decisions("prompt", i)]
        return {
            f"prompt {prompt_id}": self.prompt_lines(prompt_id),
            **{f"refined from {i}": self.prompt_lines(i) for i in line[1:]},
            **{f"refined into {p.id}": [f"{p.text} ({p.status})"] for p in children},
            "drawn": [f"{i}: {self.verdict_line(i)}" for i in drawn] or ["nothing yet"],
            "your decisions": decided or ["none"],
        }

    def _ancestors(self, prompt_id: str) -> list[str]:
        """The prompt, the one it was refined from, and so on to the first."""
        line: list[str] = []
        prompt: PromptRow | None = self.prompts[prompt_id]
        while prompt is not None and prompt.id not in line:
            line.append(prompt.id)
            prompt = self.prompts.get(prompt.parent_id or "")
        return line

    def life(self, image_id: str) -> dict[str, list[str]]:
        """Title -> lines: the history of an image, from its prompt to its mask."""
        row = self.images[image_id]
        line = self._ancestors(row.prompt_id)
        sections = {
            f"prompt {line[0]}": self.prompt_lines(line[0]),
            **{f"refined from {i}": self.prompt_lines(i) for i in line[1:]},
            "drawn": [f"round {row.round}, by {row.backend} from seed {row.seed}, sha256 {row.sha256[:16]}"],
            "verdict": [self.verdict_line(image_id), self.scores_line(image_id)],
            "labels": self.label_lines(image_id) or ["none yet"],
            "mask": self.mask_lines(image_id),
        }
        decided = [said for i in reversed(line) for said in self.decisions("prompt", i)]
        for kind in ("verdict", "label", "mask"):
            decided += self.decisions(kind, image_id)
        return {**sections, "your decisions": decided or ["none"]}

    def decisions(self, kind: DecisionKind, subject: str) -> list[str]:
        """The reviewer's decision about a prompt or an image: one line, or none."""
        decision = self._ledger.decision(kind, subject)
        return [decision_line(decision)] if decision else []

    def models(self) -> list[str]:
        """The models of the run, by role."""
        return [f"{m.role}: {m.name} {m.revision}".strip() for m in self._ledger.models().values()]

    def scores_line(self, image_id: str) -> str:
        """CLIP's most probable classes, in one line."""
        return "CLIP: " + (", ".join(f"{c} {p:.3f}" for c, p in self.top_classes(image_id)) or "not measured")

    def standing(self, image_id: str) -> Standing | Literal["undecided"]:
        """Whether an image is accepted, rejected, or not judged yet."""
        verdict = self.verdicts.get(image_id)
        return "undecided" if verdict is None else "accepted" if verdict.accepted else "rejected"


def _decided(row: VerdictRow, decision: DecisionRow | None) -> VerdictRow:
    """The verdict that a reviewer's decision makes of one."""
    if decision is None or (decision.action == "accept") == row.accepted:
        return row
    return replace(row, accepted=not row.accepted, reason=VerdictReason.PERSON)


def decision_line(row: DecisionRow) -> str:
    """A reviewer's decision in words."""
    value = ", ".join(
        f"{key} {', '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in row.value.items()
    )
    return (
        f"{row.kind}: {row.action}"
        + (f" ({value})" if value else "")
        + (f', "{row.note}"' if row.note else "")
    )
