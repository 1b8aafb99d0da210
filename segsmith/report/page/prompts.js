// Prompts: the list of families, and the map's pointer and keys.
const FAMILIES = 8;
const STATUS = { admitted: "✓", refined: "↻", dropped: "✕" };
const familyFilters = $("#family-filters");
const families = [];
prompts.family.forEach((family, k) => (families[family] ??= []).push(k));
let matching = [];
let listed = 0;

function promptLine(k) {
  const yielded = prompts.judged[k] && `${prompts.accepted[k]}/${prompts.judged[k]} accepted`;
  const line = el("span", { className: `prompt ${prompts.status[k]}` },
    el("span", { title: prompts.status[k], attributes: { role: "img", "aria-label": prompts.status[k] } },
      STATUS[prompts.status[k]] ?? "?"),
    el("span", {}, `${prompts.text[k]} `,
      el("span", { className: "small quiet" }, [yielded, prompts.problem[k]].filter(Boolean).join(" · "))));
  return line;
}

/** A prompt and, under it, those that refine it. */
function branch(k, members) {
  const children = members.filter((other) => prompts.parent[other] === k);
  const item = el("li", {}, promptLine(k));
  if (children.length) item.append(el("ul", { className: "plain" }, ...children.map((c) => branch(c, members))));
  return item;
}

function family(members) {
  const inside = new Set(members);
  const roots = members.filter((k) => !inside.has(prompts.parent[k]));
  const chip = el("span", { className: `chip k${prompts.class[members[0]] + 1}` }, className(prompts.class[members[0]]));
  return el("li", {}, chip, el("ul", { className: "plain" }, ...roots.map((k) => branch(k, members))));
}

function listFamilies() {
  const { class: target, status, word } = Object.fromEntries(new FormData(familyFilters));
  const needle = word.trim().toLowerCase();
  matching = families.filter((members) =>
    (target === "" || prompts.class[members[0]] === Number(target)) &&
    (status === "" || members.some((k) => prompts.status[k] === status)) &&
    (!needle || members.some((k) => prompts.text[k].toLowerCase().includes(needle))));
  listed = 0;
  $("#families").replaceChildren();
  moreFamilies();
  const count = matching.reduce((sum, members) => sum + members.length, 0);
  $("#family-count").textContent =
    `${matching.length} ${matching.length === 1 ? "family" : "families"}, ${count} ${count === 1 ? "prompt" : "prompts"}`;
  for (const path of $$("#map path")) {
    path.classList.toggle("faint", target !== "" && Number(path.dataset.class) !== Number(target) + 1);
  }
}

function moreFamilies() {
  $("#families").append(...matching.slice(listed, listed + FAMILIES).map(family));
  listed += FAMILIES;
  $("#more-families").hidden = listed >= matching.length;
}

if (familyFilters) {
  familyFilters.hidden = false;
  familyFilters.addEventListener("input", listFamilies);
  familyFilters.addEventListener("submit", (event) => event.preventDefault());
  $("#more-families").addEventListener("click", moreFamilies);
  listFamilies();
}

const frame = $("#map-frame");
if (frame) {
  const onMap = prompts.x.map((_, k) => k).filter((k) => prompts.x[k] !== null)
    .sort((a, b) => prompts.x[a] - prompts.x[b] || prompts.y[a] - prompts.y[b]);
  let at = -1;

  function point(k) {
    at = onMap.indexOf(k);
    $("#map-ring").setAttribute("cx", prompts.x[k]);
    $("#map-ring").setAttribute("cy", prompts.y[k]);
    $("#map-prompt").textContent =
      `${className(prompts.class[k])}: ${prompts.text[k]} (${prompts.accepted[k]} of ${prompts.judged[k]} accepted)`;
  }

  frame.addEventListener("pointermove", (event) => {
    const box = $("#map").getBoundingClientRect();
    const { width, height } = $("#map").viewBox.baseVal;
    const [x, y] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    const distance = (k) => (prompts.x[k] - x) ** 2 + (prompts.y[k] - y) ** 2;
    point(onMap.reduce((best, k) => (distance(k) < distance(best) ? k : best)));
  });
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    point(onMap[(Math.max(at, step < 0 ? 0 : -1) + step + onMap.length) % onMap.length]);
  });
}
