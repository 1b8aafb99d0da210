"use strict";
// The parts of the script are joined into one. Only the image browser and the list of prompts need it. Text from the
// run is inserted as text content only, never as HTML.
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** A new element with properties, attributes (in `attributes`) and children; strings become text. */
function el(tag, { attributes = {}, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const index = JSON.parse($("#index").textContent);
const prompts = JSON.parse($("#prompt-table").textContent);
const rowOf = new Map(index.id.map((id, row) => [id, row]));
const promptText = (row) => prompts.text[index.prompt[row]];
const classOf = (row) => prompts.class[index.prompt[row]];
const className = (number) => index.classes[number] ?? "other";
/** Is this key typed into a field, so that it is no shortcut? */
const typing = (event) =>
  event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=radio]), select");
