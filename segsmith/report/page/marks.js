// Marks: image id -> {action, note}. They are kept in this browser's storage under the run's id.
const MARKS_KEY = `segsmith-marks:${index.run}`;
const marks = new Map();
let storage = null;
let unsaved = false;
try {
  // Some browsers deny storage to local files, some only when it is used.
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
  showMarkCount();
  for (const button of $$("[data-mark]")) showMark(button);
}

/** Mark an image; the same mark again removes it. */
function mark(row, action) {
  const id = index.id[row];
  const before = marks.get(id);
  if (action === "undo" || before?.action === action) marks.delete(id);
  else marks.set(id, { action, note: before?.note ?? typedNote(row) });
  saveMarks();
}

function showMark(button) {
  const holder = button.closest("[data-row]");
  const action = holder && marks.get(index.id[holder.dataset.row])?.action;
  button.setAttribute("aria-pressed", String(action === button.dataset.mark));
  if (holder) holder.dataset.marked = action ?? "";
}

function showMarkCount() {
  if (!$("#download")) return;
  const counts = { accept: 0, reject: 0 };
  for (const { action } of marks.values()) counts[action] += 1;
  $("#mark-count").textContent = marks.size
    ? `${marks.size} marked: ${counts.accept} to accept, ${counts.reject} to reject.`
    : "No marks yet.";
  $("#download").disabled = $("#clear").disabled = marks.size === 0;
  $("#mark-note").textContent = storage
    ? ""
    : "This browser does not store marks for this page. Download them before you close it.";
}

/** One JSON object per line, in the order of the images, as `segsmith step --answers` reads them. */
function decisionLines() {
  return index.id
    .filter((id) => marks.has(id))
    .map((id) => {
      const { action, note } = marks.get(id);
      return `${JSON.stringify({ kind: "verdict", subject: id, action, note })}\n`;
    })
    .join("");
}

$("#download")?.addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([decisionLines()], { type: "application/jsonl" }));
  el("a", { href: url, download: "decisions.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  unsaved = false;
});
$("#clear")?.addEventListener("click", () => {
  if (!confirm(marks.size === 1 ? "Clear your mark?" : `Clear all ${marks.size} marks?`)) return;
  marks.clear();
  saveMarks();
});
window.addEventListener("beforeunload", (event) => {
  if (unsaved) event.preventDefault();
});
