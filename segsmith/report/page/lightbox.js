// The closer look: one picture with everything that is known of it.
const closer = $("#closer");
let around = [];
let opener = null;

async function look(row) {
  closer.dataset.row = row;
  const [word] = verdictWords(row);
  $("#closer-verdict").textContent = word;
  $("#closer-verdict").className = `badge ${index.accepted[row] ? "yes" : "no"}`;
  $("#closer-prompt").textContent = promptText(row);
  $("#closer-note").value = marks.get(index.id[row])?.note ?? "";
  const path = `images/${encodeURIComponent(index.id[row])}.png`;
  $("#closer-file").replaceChildren(
    "Full size beside this report: ", el("a", { href: path, target: "_blank", rel: "noreferrer" }, path));
  for (const button of $$("[data-mark]", closer)) showMark(button);
  if (!closer.open) closer.showModal();
  paint($(".stage", closer), row);
  const { facts } = await detail(row);
  if (closer.dataset.row !== String(row)) return;
  const told = index.fields.map((name, k) => [name, facts[k]]);
  $("dl", closer).replaceChildren(
    ...told
      .filter(([, value]) => value)
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

function go(step) {
  const at = around.indexOf(Number(closer.dataset.row));
  look(around[(at + step + around.length) % around.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".pic[data-id]") && rowOf.has(button.dataset.id)) {
    opener = button;
    const inGrid = button.closest("#grid");
    const place = button.closest(".strip, ul") ?? document;
    around = inGrid ? found : $$(".pic[data-id]", place).map((one) => rowOf.get(one.dataset.id));
    look(rowOf.get(button.dataset.id));
  } else if (button?.dataset.go === "0" || event.target === closer) closer.close();
  else if (button?.dataset.go) go(Number(button.dataset.go));
});
closer.addEventListener("keydown", (event) => {
  if (typing(event)) return;
  if (event.key === "ArrowLeft") go(-1);
  if (event.key === "ArrowRight") go(1);
});
$("#closer-note").addEventListener("input", ({ target }) => {
  const noted = marks.get(index.id[closer.dataset.row]);
  if (!noted) return;
  noted.note = target.value;
  saveMarks();
});
closer.addEventListener("close", () => opener?.focus());
