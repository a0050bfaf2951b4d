/**
 * Conflicts section of a report -> SVG text: which LoRAs pull together, which against each other, and in which blocks. Pure.
 *
 * Above the diagonal stands the cosine, below it the excess conflict with its standard error; numbers say it, brightness repeats it,
 * and what stands out from its error has a frame. Names come from anybody's files, so all text is escaped.
 */
import { FAINT, HEAT, INK, WIDTH, escapeText, shiftText, text } from "./meter.js";

const COOL = "var(--p-blue-400, #60a5fa)";
const LEFT = 20; // of the matrix: room for the LoRA's number
const CELL = 26;
const BAR = 36; // height of the strip
const STRONG = 0.02; // excess share of opposite signs from which a pair is named: chosen, a hundred times what random LoRAs show
const SIGMAS = 3;

const percent = (share) => (100 * share).toFixed(1);

/** Cosine with its sign, or a dash where one of the two changes nothing. */
export function cosineText(cosine) {
  return cosine === null || cosine === undefined ? "–" : `${cosine < 0 ? "−" : "+"}${Math.abs(cosine).toFixed(2)}`;
}

/** Excess conflict ± standard error in per cent; a dash where the two never meet. */
export function excessText({ excess, se }) {
  return excess === null || excess === undefined ? "–" : `${percent(excess)}±${percent(se ?? 0)}`;
}

/** Whether a conflict is large and cannot be the luck of the sampled rows. */
export function standsOut({ excess, se }) {
  return (excess ?? 0) > STRONG && excess > SIGMAS * (se ?? 0);
}

/** Pairs worth naming, the worst first. */
export function worst(section, most = 5) {
  return section.pairs.filter(standsOut).sort((a, b) => b.excess - a.excess).slice(0, most);
}

function pairTitle(section, pair) {
  const [one, other] = [pair.first, pair.second].map((number) => `${number + 1} ${section.loras[number].name}`);
  const overlap = (value) => (value === null || value === undefined ? "unknown" : `${percent(value)} %`);
  return `${one} × ${other}: cosine ${cosineText(pair.cosine)}, excess conflict ${excessText(pair)} % (opposite signs ` +
    `${pair.conflict === null ? "unknown" : `${percent(pair.conflict)} %, by chance ${percent(pair.chance)} %`}), ` +
    `same output directions ${overlap(pair.overlap_out)}, same input directions ${overlap(pair.overlap_in)}, ${pair.tensors} tensors`;
}

function cell(x, y, width, { label, share, colour, framed, title }) {
  const size = Math.min(9, width / 4);
  const place = `x="${x.toFixed(2)}" y="${y}" width="${(width - 1).toFixed(2)}" height="${CELL - 1}"`;
  return `<g><title>${escapeText(title)}</title><rect ${place} fill="${FAINT}" opacity="0.15"/><rect ${place} fill="${colour}" opacity="${Math.min(share, 1).toFixed(3)}"/>` +
    (framed ? `<rect ${place} fill="none" stroke="${INK}" stroke-width="1.5"/>` : "") +
    text((x + width / 2).toFixed(2), y + CELL / 2 + 3, label, { size: size.toFixed(1), colour: INK, anchor: "middle", weight: framed ? "bold" : "normal" }) + "</g>";
}

/** The matrix: pairs twice, as cosine above and as excess conflict below the diagonal. */
export function drawMatrix(section, top) {
  const count = section.loras.length;
  const width = Math.min((WIDTH - LEFT) / count, 90);
  const at = (number) => LEFT + number * width;
  const parts = section.loras.map((lora, number) =>
    text(at(number) + width / 2, top + 9, `${number + 1}${lora.protected ? " D" : ""}`, { size: 9, anchor: "middle" }) +
    text(2, top + 14 + number * CELL + 16, number + 1, { size: 9 }));
  for (const pair of section.pairs) {
    const title = pairTitle(section, pair);
    const cosine = pair.cosine ?? 0;
    parts.push(cell(at(pair.second), top + 14 + pair.first * CELL, width, { label: cosineText(pair.cosine), share: Math.abs(cosine), colour: cosine < 0 ? HEAT : COOL, framed: false, title }));
    parts.push(cell(at(pair.first), top + 14 + pair.second * CELL, width, { label: excessText(pair), share: (pair.excess ?? 0) * 5, colour: HEAT, framed: standsOut(pair), title }));
  }
  return parts.join("");
}

/** Bars by block, each with its whisker: [{value, error}] and the largest, which is written beside them. */
export function drawStrip(bars, top, { name, write }) {
  const largest = Math.max(...bars.map(({ value, error }) => (value ?? 0) + (error ?? 0)), 0);
  const width = WIDTH / Math.max(bars.length, 1);
  const parts = [text(0, top + 9, `${name}, largest bar ${write(largest)}`, { size: 10 })];
  bars.forEach(({ value, error }, block) => {
    const y = (height) => (top + 14 + BAR * (1 - (largest ? height / largest : 0))).toFixed(2);
    const x = block * width;
    const title = `block ${block}: ${value === null || value === undefined ? "–" : write(value)}${error ? ` ± ${write(error)}` : ""}`;
    const bar = `x="${x.toFixed(2)}" width="${Math.max(width - 1, 1).toFixed(2)}"`;
    parts.push(`<g><title>${escapeText(title)}</title><rect ${bar} y="${top + 14}" height="${BAR}" fill="${FAINT}" opacity="0.12"/>` +
      `<rect ${bar} y="${y(value ?? 0)}" height="${(largest ? (BAR * (value ?? 0)) / largest : 0).toFixed(2)}" fill="${HEAT}" opacity="0.6"/>` +
      (error ? `<path d="M${(x + width / 2 - 0.5).toFixed(2)} ${y((value ?? 0) + error)}V${y(Math.max((value ?? 0) - error, 0))}" stroke="${INK}"/>` : "") + "</g>");
    if (block % 5 === 0) parts.push(text(x.toFixed(2), top + BAR + 23, block, { size: 9 }));
  });
  return parts.join("");
}

/** ‖Σ s δ‖ or shift of a block: the root of the summed squares of its kinds where it is absolute, else the largest of them. */
function movement(section) {
  const { shift, moved } = section;
  const of = shift ? (row) => Math.max(...row.map((value) => value ?? 0)) : (row) => Math.hypot(...row);
  return (shift ?? moved).cells.map((row) => ({ value: of(row) }));
}

/** What the LoRAs would do to the model, in words. */
export function predicted({ shift, moved, loras }) {
  const [told, word] = shift ? [shift, shift.from === "stability meter" ? "shift as measured" : "predicted shift"] : [moved, "size of all changes"];
  const sides = loras.some((lora) => lora.protected) ? ` (distillation ${shiftText(told.distillation)}, rest ${shiftText(told.rest)})` : "";
  return `${word} ${shiftText(told.all)}${sides}`;
}

/** SVG of one expert, or a line for one without LoRAs; "" for one without the section. */
export function drawExpert({ role, name, conflicts: section }) {
  if (!section) return "";
  if (!section.loras.length) return `<p>${escapeText(name)}: no LoRAs to compare</p>`;
  const matrix = 34 + section.loras.length * 13;
  const strips = matrix + 14 + section.loras.length * CELL + 22;
  const height = strips + 2 * (BAR + 30);
  const title = role === "model" ? name : `${role}  ${name}`;
  const found = worst(section, Infinity).length;
  const label = `${role === "model" ? "" : `${role}: `}${found} of ${section.pairs.length} pairs conflict beyond chance, ${predicted(section)}`;
  const parts = [
    text(0, 12, title, { size: 11, colour: INK, weight: "bold" }),
    text(0, 26, predicted(section), { size: 10, colour: INK }),
    ...section.loras.map((lora, number) => text(0, 40 + number * 13,
      `${number + 1}${lora.protected ? " D" : ""}  strength ${lora.strength}, norm ${lora.norm.toPrecision(3)}  ${lora.name}`, { size: 10 })),
    drawMatrix(section, matrix),
    text(0, strips - 8, "above: cosine · below: excess conflict ± standard error, %; framed where it stands out", { size: 9 }),
    drawStrip(section.by_block.map(({ excess, se }) => ({ value: excess, error: se })), strips, { name: "excess conflict by block, all pairs", write: (value) => `${percent(value)} %` }),
    drawStrip(movement(section), strips + BAR + 30, { name: section.shift ? "largest shift in a block" : "size of all changes by block", write: shiftText }),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="100%" role="img" aria-label="${escapeText(label)}" ` +
    `font-family="sans-serif">${parts.join("")}</svg>`;
}

/** The pairs that stand out as a list, and what could not be analysed. */
export function drawNotes({ role, conflicts: section }) {
  if (!section) return "";
  const pairs = worst(section).map((pair) => pairTitle(section, pair));
  const left = section.left_out.map(({ lora, kind, reason, tensors }) => `not analysed: ${lora}: ${kind} in ${tensors} tensors: ${reason}`);
  if (!pairs.length && !left.length) return "";
  const head = `${role === "model" ? "" : `${role}: `}${pairs.length ? "pairs that conflict most" : "notes"}`;
  return `<details><summary>${escapeText(head)}</summary><ol>${[...pairs, ...left].map((line) => `<li>${escapeText(line)}</li>`).join("")}</ol></details>`;
}

/** HTML of a whole report. */
export function drawConflicts(report) {
  return (report.experts ?? []).map((expert) => drawExpert(expert) + drawNotes(expert)).join("");
}
