/**
 * Precision plan -> HTML text: which layer is stored in which format, in how many bytes, with what error. Pure: no DOM, no app.
 *
 * One cell a block and kind. Warm colours are few bits, cool ones 8 bit, grey is not quantized; any two of them, and each of them and the
 * background of a dark or light theme, stay apart for all kinds of colour blindness. A pale striped cell is a weight in that format whose
 * product is computed in 16 bit. A plan is for a safetensors or for a GGUF file, so formats of one share colours with types of the other.
 * Every name and line may come from a file of anybody, so all text is escaped.
 */
import { FAINT, INK, WIDTH, escapeText, text } from "./meter.js";
import { drawText } from "./table.js";

const VERSION = 1;
const WIDE = " 16-bit"; // after the format of a cell: the weight is dequantized for a product in 16 bit
// Found by random search within the hues: the least distance in CIE L*a*b* that normal sight, protanopia, deuteranopia or tritanopia
// (Machado et al. 2009) leaves between two of them is 29; brightness tells what hue does not.
export const COLOURS = {
  nvfp4: "#d27f2c", convrot_w4a4: "#971b02", asym_w4a8_int8: "#f3c715",
  mxfp8: "#93bef0", float8_e4m3fn: "#026897", float8_e5m2: "#04f18d", int8_tensorwise: "#7c03e3",
  keep: "#808080",
};
// The same colours by bits a weight, from red to violet. What a size budget chooses from has one each; older types of nearly as many bits
// share them, but never two that one mix holds.
export const GGUF_COLOURS = {
  Q2_K: "#971b02", Q3_K: "#d27f2c", IQ4_XS: "#f3c715", Q4_K: "#04f18d", Q5_K: "#93bef0", Q6_K: "#026897", Q8_0: "#7c03e3",
  IQ4_NL: "#f3c715", Q4_0: "#04f18d", Q4_1: "#93bef0", Q5_0: "#93bef0", Q5_1: "#026897",
};
const LEFT = 74; // where the picture begins, right of the names of its rows
const ROW = 12;
const LINE = 14; // height of a line of the legend

/** Colour of a format; one that this page does not know has the colour of text, neither warm nor cool. */
export function colourOf(format) {
  return [COLOURS, GGUF_COLOURS].find((colours) => Object.hasOwn(colours, format))?.[format] ?? INK;
}

/** The cells that hold a layer: place, format, and whether its product is in 16 bit. A kind that a block has not, null, is left out. */
export function cells({ cells: rows }) {
  return rows.flatMap((row, block) => row.flatMap((cell, kind) => {
    if (cell === null) return [];
    const wide = cell.endsWith(WIDE);
    return [{ block, kind, wide, format: wide ? cell.slice(0, -WIDE.length) : cell }];
  }));
}

/** Decimal, as Save Model's table writes sizes. */
function sizeText(bytes) {
  return bytes >= 1e8 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** null stands for an error that nobody has measured. */
function errorText(error) {
  return error === null || error === undefined ? "" : `error ${Number(error).toFixed(4)}`;
}

/** A cell in the colour of its format, pale and striped where the product is in 16 bit. */
function swatch(x, y, width, { format, wide, title }) {
  const colour = colourOf(format);
  const [left, right, half] = [x, x + width, x + width / 2].map((place) => place.toFixed(2));
  const stripes = `M${left} ${y + ROW / 2}L${half} ${y}M${left} ${y + ROW - 1}L${right} ${y}M${half} ${y + ROW - 1}L${right} ${y + ROW / 2}`;
  return `<g>${title ? `<title>${escapeText(title)}</title>` : ""}` +
    `<rect x="${left}" y="${y}" width="${width.toFixed(2)}" height="${ROW - 1}" fill="${colour}"${wide ? ' opacity="0.35"' : ""}/>` +
    (wide ? `<path d="${stripes}" stroke="${colour}"/>` : "") + "</g>";
}

/** A text that ends where its place ends. */
function clipped(x, y, width, content, style) {
  return `<svg x="${x}" y="${y}" width="${width}" height="${LINE + 2}">${text(0, 11, content, style)}</svg>`;
}

function drawLegend({ formats }, wide, top) {
  const lines = formats.map(({ name, layers, bytes, error }, line) => {
    const y = top + line * LINE;
    return swatch(0, y, 10, { format: name, wide: false }) + clipped(16, y - 1, 144, name, { size: 10, colour: INK }) +
      text(228, y + 10, `${layers} layers`, { size: 10, anchor: "end" }) + text(306, y + 10, sizeText(bytes), { size: 10, anchor: "end" }) +
      text(WIDTH, y + 10, errorText(error), { size: 10, anchor: "end" });
  });
  const y = top + formats.length * LINE;
  if (wide) lines.push(swatch(0, y, 10, { format: "", wide: true }) + text(16, y + 10, `striped: product in 16 bit, ${wide} layers`, { size: 10 }));
  return lines.join("");
}

function drawPicture(expert, top) {
  const blocks = expert.cells.length;
  const width = (WIDTH - LEFT) / Math.max(blocks, 1);
  const parts = expert.kinds.map((kind, row) => clipped(0, top + row * ROW - 2, LEFT - 2, kind, { size: 9 }));
  for (const { block, kind, format, wide } of cells(expert)) {
    const title = `blocks.${block}.${expert.kinds[kind]}: ${format}${wide ? ", product in 16 bit" : ""}`;
    parts.push(swatch(LEFT + block * width, top + kind * ROW, Math.max(width - 1, 1), { format, wide, title }));
  }
  const bottom = top + expert.kinds.length * ROW;
  for (let block = 0; block < blocks; block += 5) parts.push(text((LEFT + block * width).toFixed(2), bottom + 9, block, { size: 9, colour: FAINT }));
  return parts.join("");
}

/** HTML of one expert: an SVG WIDTH units wide, as wide as its place, and the lines about graphics cards below it. */
export function drawExpert(expert) {
  const { role, title, bytes, error, formats, kinds, cells: rows, cards } = expert;
  const wide = cells(expert).filter((cell) => cell.wide).length;
  const told = [sizeText(bytes), errorText(error)].filter(Boolean).join(" · ");
  const name = role === "model" ? title : `${role}  ${title}`;
  const picture = 26 + (formats.length + (wide ? 1 : 0)) * LINE + 4;
  const height = picture + kinds.length * ROW + (rows.length ? 14 : 0);
  const label = `${name}: ${told}; ${formats.map((format) => `${format.name} ${format.layers} layers`).join(", ")}`;
  const parts = [
    clipped(0, 2, WIDTH - 150, name, { size: 11, colour: INK, weight: "bold" }),
    text(WIDTH, 13, told, { size: 11, colour: INK, anchor: "end", weight: "bold" }),
    drawLegend(expert, wide, 26),
    drawPicture(expert, picture),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="100%" role="img" aria-label="${escapeText(label)}" ` +
    `font-family="sans-serif">${parts.join("")}</svg>${cards.length ? drawText(cards) : ""}`;
}

/** HTML of a whole plan; one line for a plan of a version that this page does not know. */
export function drawPlan(plan) {
  if (plan.version === VERSION) return plan.experts.map(drawExpert).join("");
  return `<p>precision plan of version ${escapeText(plan.version ?? "unknown")}: this page draws version ${VERSION}, reload the page</p>`;
}
