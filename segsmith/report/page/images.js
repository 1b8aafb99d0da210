// The image browser: filters, pages, the grid and its keys.
const PAGE = 36;
const filters = $("#filters");
const grid = $("#grid");
let found = [];
let page = 0;

function matches() {
  const { verdict, class: target, reason, word } = Object.fromEntries(new FormData(filters));
  const needle = word.trim().toLowerCase();
  const passes = {
    all: () => true,
    accepted: (row) => index.accepted[row],
    rejected: (row) => !index.accepted[row],
    changed: (row) => index.changed[row],
    marked: (row) => marks.has(index.id[row]),
  }[verdict];
  return index.id
    .map((_, row) => row)
    .filter(
      (row) =>
        passes(row) &&
        (target === "" || classOf(row) === Number(target)) &&
        (reason === "" || index.reason[row] === Number(reason)) &&
        (!needle || promptText(row).toLowerCase().includes(needle) || index.id[row] === needle),
    );
}

/** The verdict of an image, and its probability beside the threshold. */
function verdictWords(row) {
  const [p, threshold] = [index.p[row], index.threshold[row]];
  const verdict = index.accepted[row] ? "✓ accepted" : `✕ ${index.reasons[index.reason[row]]}`;
  const score = p === null ? "" : `${className(classOf(row))} ${p.toFixed(2)}`;
  const bound = p === null || threshold === null ? "" : ` ${p >= threshold ? "≥" : "<"} ${threshold.toFixed(2)}`;
  return [verdict, score + bound];
}

function tile(row) {
  const [verdict, score] = verdictWords(row);
  const button = (action, sign) =>
    el("button", {
      type: "button", tabIndex: -1, textContent: sign,
      attributes: { "data-mark": action, "aria-pressed": "false", "aria-label": `${action}: ${promptText(row)}` },
    });
  const item = el(
    "li",
    { className: index.accepted[row] ? "tile" : "tile no", attributes: { "data-row": row } },
    el("button", {
      type: "button", className: "thumb", tabIndex: -1,
      attributes: { "data-id": index.id[row], "aria-label": `${verdict}, ${promptText(row)}` },
    }),
    el("p", { className: "badge" }, verdict),
    el("p", { className: "small quiet" }, score),
    el("p", { className: "small labels" }),
    el("span", { className: "marks" }, button("accept", "✓"), button("reject", "✕")),
  );
  for (const one of $$("[data-mark]", item)) showMark(one);
  paint($(".thumb", item), row);
  detail(row).then(({ labels, added, removed }) => {
    if (!index.accepted[row] || !(labels.length || removed.length)) return;
    const parts = labels.map((n) =>
      added.includes(n) ? el("ins", { title: "added by relabelling" }, `+ ${className(n)}`) : className(n));
    for (const n of removed) parts.push(el("del", { title: "removed by relabelling" }, `− ${className(n)}`));
    $(".labels", item).append(...parts.flatMap((part, k) => (k ? [", ", part] : [part])));
  });
  return item;
}

function turn(to, focus = false) {
  const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
  page = Math.min(Math.max(to, 0), last);
  grid.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(tile));
  const first = $(".thumb", grid);
  if (first) first.tabIndex = 0;
  if (focus) first?.focus();
  $("#page").value = page + 1;
  $("#page").max = last + 1;
  $("#pages").textContent = `of ${last + 1}`;
  $("#count").textContent = found.length
    ? `${page * PAGE + 1}–${Math.min((page + 1) * PAGE, found.length)} of ${found.length}`
    : "No image matches.";
  for (const button of $$("[data-turn]")) {
    const back = ["first", "previous"].includes(button.dataset.turn);
    button.disabled = page === (back ? 0 : last);
  }
}

function refilter() {
  found = matches();
  turn(0);
}

/** Show the images that pass one filter, e.g. {verdict: "rejected"}; all other filters are reset. */
function showOnly(values) {
  filters.reset();
  for (const [name, value] of Object.entries(values)) filters.elements[name].value = value;
  refilter();
}

function moveFocus(from, key) {
  const thumbs = $$(".thumb", grid);
  const columns = thumbs.filter((one) => one.offsetTop === thumbs[0].offsetTop).length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -PAGE, End: PAGE }[key];
  const to = thumbs.indexOf(from) + step;
  const next = thumbs[Math.min(Math.max(to, 0), thumbs.length - 1)];
  from.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

if (grid) {
  $("#browser").hidden = false;
  filters.addEventListener("input", refilter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  $("#opacity").addEventListener("input", ({ target }) => {
    document.documentElement.style.setProperty("--opacity", target.value / 100);
  });
  $("#page").addEventListener("change", ({ target }) => turn(Number(target.value) - 1));
  $("#browser").addEventListener("click", ({ target }) => {
    const to = { first: 0, previous: page - 1, next: page + 1, last: Infinity };
    const direction = target.closest("[data-turn]")?.dataset.turn;
    if (direction) turn(to[direction]);
  });
  document.addEventListener("click", ({ target }) => {
    const wanted = target.closest("a[data-filter]")?.dataset.filter;
    if (wanted) showOnly({ verdict: wanted });
  });
  document.addEventListener("click", ({ target }) => {
    const button = target.closest("[data-mark]");
    if (button) mark(Number(button.closest("[data-row]").dataset.row), button.dataset.mark);
  });
  grid.addEventListener("focusin", ({ target }) => {
    if (!target.matches(".thumb")) return;
    for (const one of $$(".thumb", grid)) one.tabIndex = one === target ? 0 : -1;
  });
  grid.addEventListener("keydown", (event) => {
    const focused = event.target.closest(".thumb");
    if (!focused || !/^(Arrow|Home|End)/.test(event.key)) return;
    event.preventDefault();
    moveFocus(focused, event.key);
  });
  document.addEventListener("keydown", (event) => {
    const holder = event.target.closest("#grid [data-row], #lightbox");
    if (!holder || typing(event)) return;
    const key = event.key.toLowerCase();
    const action = { a: "accept", r: "reject", u: "undo" }[key];
    if (action && holder.dataset.row) mark(Number(holder.dataset.row), action);
    if ("123".includes(key)) $(["#view-photo", "#view-both", "#view-mask"][key - 1]).checked = true;
    if (holder.id === "lightbox") return;
    if (key === "n") turn(page + 1, true);
    if (key === "p") turn(page - 1, true);
  });
  showMarkCount();
  refilter();
}
