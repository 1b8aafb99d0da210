"use strict";
// The page reads well without this file; it adds keys, the slider, the search and the closer look.
const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => [...document.querySelectorAll(selector)];

const slider = $("#opacity");
slider?.addEventListener("input", () => {
  document.documentElement.style.setProperty("--opacity", slider.value / 100);
});

const views = ["#view-photo", "#view-both", "#view-mask"];
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], textarea, select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !"123".includes(event.key)) return;
  const view = $(views[event.key - 1]);
  if (view) view.checked = true;
});

const find = $("#find");
find?.addEventListener("input", () => {
  const word = find.value.trim().toLowerCase();
  for (const group of $$("details.prompts")) {
    let hits = 0;
    for (const item of group.querySelectorAll("li")) {
      item.hidden = !item.textContent.toLowerCase().includes(word);
      hits += !item.hidden;
    }
    group.hidden = hits === 0;
    if (word) group.open = hits > 0;
  }
});

const details = JSON.parse($("#details").textContent);
const closer = $("#closer");
let shown = null;

function look(button) {
  shown = button;
  closer.querySelector(".stage").replaceChildren(...[...button.children].map((node) => node.cloneNode(true)));
  // Text content only: prompts and class names are nobody's HTML.
  closer.querySelector("dl").replaceChildren(
    ...(details[button.dataset.id] ?? []).map(([name, value]) => {
      const row = document.createElement("div");
      for (const [tag, text] of [["dt", name], ["dd", value]]) {
        row.append(Object.assign(document.createElement(tag), { textContent: text }));
      }
      return row;
    }),
  );
  if (!closer.open) closer.showModal();
}

function go(step) {
  const place = shown.closest(".strip, .wall, ul") ?? document;
  const all = [...place.querySelectorAll("button.pic")].filter((button) => button.offsetParent);
  look(all[(all.indexOf(shown) + step + all.length) % all.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches(".pic[data-id]")) look(button);
  else if (button?.dataset.go === "0" || event.target === closer) closer.close();
  else if (button?.dataset.go) go(Number(button.dataset.go));
});
closer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") go(-1);
  if (event.key === "ArrowRight") go(1);
});
closer.addEventListener("close", () => shown?.focus());

const links = new Map($$("nav a").map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-30% 0px -65%" });
for (const id of links.keys()) watcher.observe(document.getElementById(id));
