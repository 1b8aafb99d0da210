"""A reviewer's decisions: what is left to review, and how a decision is checked, recorded and applied.

The graph pauses with LangGraph's `interrupt`, but each decision is written to the ledger as soon as it is made. A
review node computes what is left from the ledger alone, so it can run again after a crash, and a conversation
that was interrupted resumes at the same item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from segsmith.errors import SegsmithError
from segsmith.ids import make_id
from segsmith.memory.ledger import DecisionKind, DecisionRow, Ledger
from segsmith.review.reviewed_run import ReviewedRun

KINDS: tuple[DecisionKind, ...] = get_args(DecisionKind)


# -- what is left to review ------------------------------------------------------------------------


def subjects(ledger: Ledger, kind: DecisionKind, ids: Sequence[str] | None = None) -> dict[str, str]:
    """Subject id -> the agents' current decision about it, as a word; when it changes, the item is shown again.

    All subjects in their order, or those of `ids`.
    """
    if kind == "prompt":
        return dict.fromkeys(ledger.admitted(ids), "admitted")
    if kind == "verdict":
        return {image_id: f"{accepted}" for image_id, accepted in ledger.standings(ids).items()}
    if kind == "label":
        return {image_id: ",".join(classes) for image_id, classes in ledger.final_labels(ids).items()}
    return {
        image_id: ",".join(classes)
        for image_id, classes, made_for in ledger.final_masks(ids)
        if made_for in (None, classes)
    }


def lagging_masks(ledger: Ledger) -> set[str]:
    """Accepted images whose mask was made with labels other than their current ones."""
    return {i for i, classes, made_for in ledger.final_masks() if made_for not in (None, classes)}


def pending(ledger: Ledger, kind: DecisionKind, ids: Sequence[str] | None = None) -> list[str]:
    """Ids of `kind` that the reviewer has not seen, has not decided about, and has not left to the agents.

    All in their order, or those of `ids`; only the former reads all images.
    """
    auto = ledger.auto
    if kind in auto or "all" in auto:
        return []
    seen, decided = ledger.seen(kind, ids), ledger.decided(kind, ids)
    left = [i for i, now in subjects(ledger, kind, ids).items() if i not in decided and seen.get(i) != now]
    classes = {name.removeprefix("class:") for name in auto if name.startswith("class:")}
    if not classes:
        return left
    of_class = ledger.classes_of(kind, left)
    return [subject for subject in left if of_class.get(subject) not in classes]


def looked_at(ledger: Ledger, kind: DecisionKind) -> list[str]:
    """Ids of `kind` that the reviewer has decided about or passed over, and that have not changed since.

    Reads what the reviewer has seen, once a pause, because all of it can be gone back to.
    """
    seen, decided = ledger.seen(kind), ledger.decided(kind)
    if not (seen or decided):
        return []
    now = subjects(ledger, kind)
    known = [p.id for p in ledger.prompts()] if kind == "prompt" else now  # a rejected prompt is no subject
    return [i for i in known if i in decided or (i in now and seen.get(i) == now[i])]


def mark_seen(ledger: Ledger, kind: DecisionKind, ids: Sequence[str]) -> None:
    """Remember that the reviewer has seen these items with the agents' current decisions."""
    ledger.mark_seen(kind, subjects(ledger, kind, ids))


def changed_from(ledger: Ledger, kind: DecisionKind, subject: str) -> str:
    """The agents' decision when the reviewer last saw the item, as a word; "" if it is the same now."""
    before, now = ledger.seen(kind, [subject]).get(subject), subjects(ledger, kind, [subject]).get(subject)
    if before is None or before == now:
        return ""
    return {"True": "accepted", "False": "rejected"}.get(before, before)


def set_auto(ledger: Ledger, what: str | None) -> None:
    """Leave `what` to the agents from now on; None ends this for everything."""
    ledger.auto = () if what is None else tuple(sorted({*ledger.auto, what}))


# -- decisions -------------------------------------------------------------------------------------


def check_decision(reviewed: ReviewedRun, row: DecisionRow) -> DecisionRow:
    """The decision with the full id of its subject and a complete value, ready to `record`.

    Raises `SegsmithError` if its subject is not in this run, or if the edit is not possible.
    """
    row = replace(row, subject=find_subject(reviewed.ledger, row.kind, row.subject))
    if row.action == "edit" and row.kind == "prompt":
        text = row.value.get("text")
        if not isinstance(text, str):
            raise SegsmithError("An edited prompt needs its text.", 'Give "value": {"text": "..."}.')
        draft = reviewed.prompt_agent.edited(row.subject, text)  # raises for a text that cannot be drawn
        return replace(row, value={"text": draft.text})
    if row.action == "edit" and row.kind == "verdict":
        raise SegsmithError("A verdict is accepted or rejected, not edited.", "Use accept or reject.")
    if row.action == "edit":
        return replace(row, value={"labels": _checked_labels(reviewed, row.value.get("labels"))})
    if row.kind == "label":
        source = "clip" if row.action == "reject" else "relabel"
        labels = reviewed.ledger.labels_of(source, [row.subject])[row.subject].classes
        return replace(row, value={"labels": list(labels)})
    return row


def record(reviewed: ReviewedRun, row: DecisionRow) -> None:
    """Store a checked decision, and apply it as far as no model is needed."""
    ledger = reviewed.ledger
    with ledger.transaction():
        if row.kind == "mask" and row.action == "edit":
            row = replace(row, kind="label")  # the mask is made again with the new labels, and shown again
        before = ledger.decision(row.kind, row.subject)
        ledger.add_decision(row)
        if row.kind == "prompt" and before and before.action == "edit":  # the earlier text is withdrawn
            child = make_id("p", ledger.prompt(row.subject).class_name, before.value["text"])
            ledger.add_decision(DecisionRow("prompt", child, "reject", note="edited again"))
        if row.kind == "prompt" and row.action == "edit":
            child = reviewed.prompt_agent.admit_edit(row.subject, row.value["text"])
            ledger.add_decision(replace(row, subject=child, action="accept", value={}))
        if labels := row.value.get("labels"):
            now = ledger.labels_of("relabel", [row.subject]).get(row.subject)
            if now is not None:
                ledger.add_labels([replace(now, classes=tuple(labels))])
        mark_seen(ledger, row.kind, [row.subject])


CANDIDATES = 5
"""Ids listed where the beginning of an id fits several."""


def find_subject(ledger: Ledger, kind: DecisionKind, name: str) -> str:
    """The full id of a prompt or an image, from its id or an unambiguous beginning of it.

    The prefix ``i-`` or ``p-`` may be left out. Raises `SegsmithError` for a name that fits none or several.
    """
    found, number = ledger.subjects_like(kind, name, CANDIDATES)
    if number == 1:
        return found[0]
    if not found:
        thing = {"prompt": "prompt", "verdict": "image", "label": "labelled image", "mask": "mask"}[kind]
        raise SegsmithError(f"This run has no {thing} {name!r}.", "The report shows the ids.")
    some = ", ".join(found) + (", ..." if number > len(found) else "")
    raise SegsmithError(f"{number} ids begin with {name!r}: {some}.", "Type more of the id.")


def _checked_labels(reviewed: ReviewedRun, labels: Any) -> list[str]:
    classes = reviewed.config.classes
    if not isinstance(labels, list) or not labels or not all(isinstance(name, str) for name in labels):
        raise SegsmithError(
            "Edited labels must be a list of at least one class.",
            'Give "value": {"labels": ["cat"]}; reject the image if it shows none.',
        )
    if unknown := [name for name in labels if name not in classes]:
        raise SegsmithError(
            f"{unknown[0]!r} is not a class of this run.", f"The classes are {', '.join(classes)}."
        )
    return [name for name in classes if name in labels]


# -- a finished run --------------------------------------------------------------------------------

Stale = Literal["verdict", "label", "mask", ""]


def stale(ledger: Ledger) -> Stale:
    """The earliest kind of decision that has changed since the dataset was written; "" if none has."""
    before, now = ledger.built_from, ledger.dataset_inputs()
    if before is None:
        return ""
    if ledger.is_overruled or before.accepted != now.accepted:
        return "verdict"
    if before.labels != now.labels:
        return "label"
    return "mask" if before.masked != now.masked else ""


REENTER = {"verdict": "judge", "label": "label", "mask": "segment"}
"""Kind of changed decision -> the node after which the run resumes."""
