// Marks: image id -> {action, note}. They live in this browser's storage under the run's id.
const MARKS_KEY = `segsmith-marks:${index.run}`;
const marks = new Map();
let storage = null;
let unsaved = false;
try {
  // Some browsers refuse storage to local files, some only when it is used.
  storage = window.localStorage;
  for (const [id, mark] of Object.entries(JSON.parse(storage.getItem(MARKS_KEY) ?? "{}"))) {
    if (rowOf.has(id) && ["accept", "reject"].includes(mark?.action)) {
      marks.set(id, { action: mark.action, note: String(mark.note ?? "") });
    }
  }
} catch {
  storage = null;
}

function saveMarks() {
  try {
    storage.setItem(MARKS_KEY, JSON.stringify(Object.fromEntries(marks)));
  } catch {
    storage = null;
    unsaved = marks.size > 0;
  }
  tellMarks();
  for (const button of $$("[data-mark]")) showMark(button);
}

/** Mark a picture; the same mark again takes it back. */
function mark(row, action) {
  const id = index.id[row];
  const before = marks.get(id);
  if (action === "undo" || before?.action === action) marks.delete(id);
  else marks.set(id, { action, note: before?.note ?? "" });
  saveMarks();
}

function showMark(button) {
  const holder = button.closest("[data-row]");
  const action = holder && marks.get(index.id[holder.dataset.row])?.action;
  button.setAttribute("aria-pressed", String(action === button.dataset.mark));
  if (holder) holder.dataset.marked = action ?? "";
}

function tellMarks() {
  if (!$("#export")) return;
  const counts = { accept: 0, reject: 0 };
  for (const { action } of marks.values()) counts[action] += 1;
  $("#mark-count").textContent = marks.size
    ? `${marks.size} marked: ${counts.accept} to accept, ${counts.reject} to reject.`
    : "Nothing marked yet.";
  $("#export").disabled = $("#forget").disabled = marks.size === 0;
  $("#mark-note").textContent = storage
    ? ""
    : "This browser keeps no marks for this page: download them before you close it.";
}

/** One JSON object a line, in the order of the pictures, as `segsmith step --answers` reads them. */
function decisions() {
  return index.id
    .filter((id) => marks.has(id))
    .map((id) => {
      const { action, note } = marks.get(id);
      return `${JSON.stringify({ kind: "verdict", subject: id, action, note })}\n`;
    })
    .join("");
}

$("#export")?.addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([decisions()], { type: "application/jsonl" }));
  el("a", { href: url, download: "decisions.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  unsaved = false;
});
$("#forget")?.addEventListener("click", () => {
  if (!confirm(`Forget all ${marks.size} marks?`)) return;
  marks.clear();
  saveMarks();
});
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
