// The lightbox: one image enlarged, with everything that is known about it.
const lightbox = $("#lightbox");
let neighbours = [];
let opener = null;

async function enlarge(row) {
  lightbox.dataset.row = row;
  const [verdict] = verdictWords(row);
  $("#lightbox-verdict").textContent = verdict;
  $("#lightbox-verdict").className = `badge ${index.accepted[row] ? "yes" : "no"}`;
  $("#lightbox-prompt").textContent = promptText(row);
  $("#lightbox-note").value = marks.get(index.id[row])?.note ?? "";
  $("#lightbox-file").replaceChildren();
  for (const button of $$("[data-mark]", lightbox)) showMark(button);
  if (!lightbox.open) lightbox.showModal();
  paint($(".frame", lightbox), row);
  const { facts, size } = await detail(row);
  if (lightbox.dataset.row !== String(row)) return; // another image was opened meanwhile
  const path = `images/${encodeURIComponent(index.id[row])}.png`;
  const link = el("a", { href: path, target: "_blank", rel: "noreferrer" }, path);
  if (size) $("#lightbox-file").replaceChildren("Full size, in the run folder: ", link);
  const named = index.fields.map((name, k) => [name, facts[k]]);
  $("dl", lightbox).replaceChildren(
    ...named
      .filter(([, value]) => value)
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

/** The note typed for an image before it was marked. */
function typedNote(row) {
  return lightbox.open && Number(lightbox.dataset.row) === row ? $("#lightbox-note").value : "";
}

function enlargeNeighbour(step) {
  const at = neighbours.indexOf(Number(lightbox.dataset.row));
  enlarge(neighbours[(at + step + neighbours.length) % neighbours.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".thumb[data-id]") && rowOf.has(button.dataset.id)) {
    opener = button;
    const inGrid = button.closest("#grid");
    const place = button.closest(".strip, ul") ?? document;
    neighbours = inGrid ? found : $$(".thumb[data-id]", place).map((one) => rowOf.get(one.dataset.id));
    enlarge(rowOf.get(button.dataset.id));
  } else if (button?.matches("[data-close]") || event.target === lightbox) lightbox.close();
  else if (button?.dataset.step) enlargeNeighbour(Number(button.dataset.step));
});
lightbox.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  if (event.key === "ArrowLeft") enlargeNeighbour(-1);
  if (event.key === "ArrowRight") enlargeNeighbour(1);
});
$("#lightbox-note").addEventListener("input", ({ target }) => {
  const marked = marks.get(index.id[lightbox.dataset.row]);
  if (!marked) return;
  marked.note = target.value;
  saveMarks();
});
lightbox.addEventListener("close", () => opener?.focus());
