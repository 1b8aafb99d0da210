// Sheets follow this script in the page as inert text. One is decoded when one of its images is first shown.
const KEPT_SHEETS = 16;
const openSheets = new Map();
const wholePage = new Promise((resolve) => {
  if (document.readyState !== "loading") resolve();
  else document.addEventListener("DOMContentLoaded", resolve, { once: true });
});

/** A promise of {photo, mask, rows} of sheet number `k`; only the most recently used are kept. */
function sheet(k) {
  const opened = openSheets.get(k) ?? openSheet(k);
  openSheets.delete(k);
  openSheets.set(k, opened);
  if (openSheets.size > KEPT_SHEETS) openSheets.delete(openSheets.keys().next().value);
  return opened;
}

async function openSheet(k) {
  // A following element shows that the parser has finished this one.
  if (!document.getElementById(`sheet-${k}`)?.nextElementSibling) await wholePage;
  const content = JSON.parse(document.getElementById(`sheet-${k}`).textContent);
  const [photo, mask] = await Promise.all([content.photo, content.mask].map(decodeImage));
  return { photo, mask, rows: content.rows };
}

async function decodeImage(base64) {
  if (!base64) return null;
  const image = new Image();
  image.src = `data:image/webp;base64,${base64}`;
  await image.decode();
  return image;
}

/** What is known about the image in row `row` of the index. */
async function detail(row) {
  return (await sheet(Math.floor(row / index.perSheet))).rows[row % index.perSheet];
}

/** Fill `holder` with an image: the photo, the mask over it, and the names on the mask. */
async function paint(holder, row) {
  holder.dataset.painting = row;
  const { photo, mask, rows } = await sheet(Math.floor(row / index.perSheet));
  if (holder.dataset.painting !== String(row)) return; // another image was requested meanwhile
  const cell = row % index.perSheet;
  const { size, tags = [] } = rows[cell];
  if (!size) {
    holder.replaceChildren(el("span", { className: "unreadable" }, "image missing or unreadable"));
    return;
  }
  const [width, height] = size;
  const corner = [(cell % index.columns) * index.side, Math.floor(cell / index.columns) * index.side];
  const layers = [["photo", photo], ["mask", rows[cell].tags && mask]]
    .filter(([, image]) => image)
    .map(([name, image]) => {
      const canvas = el("canvas", { className: name, width, height });
      canvas.getContext("2d").drawImage(image, ...corner, width, height, 0, 0, width, height);
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
