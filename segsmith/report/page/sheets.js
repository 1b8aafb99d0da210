// Sheets lie in the page as inert text behind this script; one is opened when a picture of it is looked at.
const KEPT_SHEETS = 16;
const openSheets = new Map();
const wholePage = new Promise((resolve) => {
  if (document.readyState !== "loading") resolve();
  else document.addEventListener("DOMContentLoaded", resolve, { once: true });
});

/** A promise of {photo, mask, rows} of sheet number `k`; the least recently used are let go. */
function sheet(k) {
  const found = openSheets.get(k) ?? openSheet(k);
  openSheets.delete(k);
  openSheets.set(k, found);
  if (openSheets.size > KEPT_SHEETS) openSheets.delete(openSheets.keys().next().value);
  return found;
}

async function openSheet(k) {
  // The next element shows that the parser is through with this one.
  if (!document.getElementById(`sheet-${k}`)?.nextElementSibling) await wholePage;
  const content = JSON.parse(document.getElementById(`sheet-${k}`).textContent);
  const [photo, mask] = await Promise.all([content.photo, content.mask].map(openPicture));
  return { photo, mask, rows: content.rows };
}

async function openPicture(base64) {
  if (!base64) return null;
  const picture = new Image();
  picture.src = `data:image/webp;base64,${base64}`;
  await picture.decode();
  return picture;
}

/** What is known of picture number `row`. */
async function detail(row) {
  return (await sheet(Math.floor(row / index.perSheet))).rows[row % index.perSheet];
}

/** Fill `holder` with a picture: photo, mask and the names on the mask, one over the other. */
async function paint(holder, row) {
  holder.dataset.painting = row;
  const { photo, mask, rows } = await sheet(Math.floor(row / index.perSheet));
  if (holder.dataset.painting !== String(row)) return; // another picture was asked for meanwhile
  const cell = row % index.perSheet;
  const { size, tags = [] } = rows[cell];
  if (!size) {
    holder.replaceChildren(el("span", { className: "lost" }, "picture file missing"));
    return;
  }
  const [width, height] = size;
  const corner = [(cell % index.columns) * index.side, Math.floor(cell / index.columns) * index.side];
  const layers = [["photo", photo], ["mask", rows[cell].tags && mask]]
    .filter(([, picture]) => picture)
    .map(([name, picture]) => {
      const canvas = el("canvas", { className: name, width, height });
      canvas.getContext("2d").drawImage(picture, ...corner, width, height, 0, 0, width, height);
      return canvas;
    });
  const names = tags.map(([number, x, y]) => {
    const tag = el("span", { className: `tag k${number + 1}` }, className(number));
    tag.style.setProperty("--x", x);
    tag.style.setProperty("--y", y);
    return tag;
  });
  holder.replaceChildren(...layers, ...names);
}
