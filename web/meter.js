/**
 * Meter section of a report -> SVG text. Pure: no DOM, no app, so `node --test` can run it.
 *
 * Status is a word, shift a number, zones have their bounds written; colour and brightness only repeat them. The large needle is what
 * the word judges; a distillation LoRA, one exact change of the sampler's path, has a needle of its own. Colours come from the theme's
 * CSS variables. Every name in a report may come from a file of anybody, so all text is escaped.
 */
export const WIDTH = 420;
const LEFT = 66; // where the heat strip begins, right of the names of its rows
const ROW = 16;
const ZONES = ["stable", "saturated", "volatile"];
const COLOURS = ["var(--p-green-500, #22c55e)", "var(--p-yellow-500, #eab308)", "var(--p-red-500, #ef4444)"];
export const INK = "var(--input-text, #ddd)";
export const FAINT = "var(--descrip-text, #999)";
export const HEAT = "var(--p-orange-400, #fb923c)";

export function escapeText(text) {
  const signs = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(text).replace(/[&<>"']/g, (sign) => signs[sign]);
}

/** null stands for a number that is not finite: JSON has none. */
export function shiftText(shift) {
  return shift === null || shift === undefined ? "unknown" : shift.toFixed(4);
}

/** The original engine's number is near zero for any merge, so it needs an exponent. */
export function legacyText(legacy) {
  return legacy === null || legacy === undefined ? "unknown" : legacy.toExponential(1);
}

export function text(x, y, content, { size = 11, colour = FAINT, anchor = "start", weight = "normal" } = {}) {
  return `<text x="${x}" y="${y}" font-size="${size}" font-weight="${weight}" text-anchor="${anchor}" fill="${colour}">${escapeText(content)}</text>`;
}

/** The shift that the word judges: without distillation LoRAs. A report of a version that knew one needle has only that of all. */
export function judgedShift(meter) {
  return meter.needles ? meter.needles.rest : meter.shift;
}

/** Where a distillation LoRA is merged, its own shift and that of all, as [letter, name, shift]; else nothing. */
export function sideNeedles(meter) {
  if (!meter.needles || !meter.loras.some((lora) => lora.protected)) return [];
  return ["distillation", "all"].map((name) => [name[0].toUpperCase(), name, meter.needles[name]]);
}

/** Zones of the gauge and the needles, as shares of its length; the scale ends at 1.5 times the volatile bound. */
export function gauge(meter) {
  const full = 1.5 * meter.volatile_above || 1;
  const bounds = [0, meter.stable_below, meter.volatile_above, full];
  const shift = judgedShift(meter) ?? full;
  return {
    zones: ZONES.map((word, i) => ({ word, low: bounds[i], start: bounds[i] / full, stop: bounds[i + 1] / full })),
    needle: Math.min(shift / full, 1),
    beyond: shift > full,
    sides: sideNeedles(meter).map(([letter, name, value]) => ({ letter, name, shift: value, place: Math.min((value ?? full) / full, 1) })),
  };
}

/** One cell a block and kind: place, brightness as a share of the volatile bound, and whether it is above it. */
export function cells(meter) {
  const full = meter.volatile_above || 1;
  return meter.cells.flatMap((row, block) =>
    row.map((shift, kind) => ({ block, kind, shift, share: Math.min((shift ?? full) / full, 1), above: (shift ?? Infinity) > full })),
  );
}

function drawGauge(meter, top) {
  const { zones, needle, beyond, sides } = gauge(meter);
  const parts = zones.map(({ word, low, start, stop }, i) => {
    const x = start * WIDTH;
    return `<rect x="${x}" y="${top}" width="${(stop - start) * WIDTH}" height="8" fill="${COLOURS[i]}" opacity="0.75"/>` +
      text(x + 2, top + 20, `${low} ${word}`, { size: 10 });
  });
  for (const { letter, name, shift, place } of sides) {
    const x = Math.max(5, Math.min(place * WIDTH, WIDTH - 5));
    parts.push(`<rect x="${x - 0.5}" y="${top - 2}" width="1" height="10" fill="${INK}"><title>${name} ${shiftText(shift)}</title></rect>` +
      text(x, top - 3, letter, { size: 9, colour: INK, anchor: "middle" }));
  }
  const x = Math.max(5, Math.min(needle * WIDTH, WIDTH - 5));
  const label = beyond ? "off the scale" : shiftText(judgedShift(meter));
  parts.push(`<path d="M${x - 5} ${top - 7}h10l-5 8z" fill="${INK}"><title>${label}</title></path>`);
  parts.push(`<rect x="${x - 1}" y="${top}" width="2" height="8" fill="${INK}"/>`);
  return parts.join("");
}

function drawHeat(meter, top) {
  const width = (WIDTH - LEFT) / Math.max(meter.blocks, 1);
  const parts = meter.kinds.map((kind, row) => text(0, top + row * (ROW + 2) + 12, kind, { size: 10 }));
  for (const { block, kind, shift, share, above } of cells(meter)) {
    const x = LEFT + block * width;
    const y = top + kind * (ROW + 2);
    const title = `blocks.${block}.${meter.kinds[kind]}: ${shiftText(shift)}`;
    const size = `width="${Math.max(width - 1, 1).toFixed(2)}" height="${ROW}"`;
    parts.push(`<g><title>${escapeText(title)}</title><rect x="${x.toFixed(2)}" y="${y}" ${size} fill="${FAINT}" opacity="0.18"/>` +
      `<rect x="${x.toFixed(2)}" y="${y}" ${size} fill="${HEAT}" opacity="${share.toFixed(3)}"/>` +
      (above ? `<path d="M${(x + 1).toFixed(2)} ${y + 3}l${(width - 3).toFixed(2)} ${ROW - 6}m0 ${6 - ROW}l${(3 - width).toFixed(2)} ${ROW - 6}" stroke="${INK}"/>` : "") + "</g>");
  }
  const bottom = top + meter.kinds.length * (ROW + 2);
  for (let block = 0; block < meter.blocks; block += 5) parts.push(text(LEFT + block * width, bottom + 9, block, { size: 9 }));
  return parts.join("");
}

/** Rows of the bar chart: every LoRA, and every pass where there are several. What is added exactly says so. */
export function bars(meter) {
  const passes = meter.passes.length > 1 ? meter.passes.map(({ name, shift }) => ({ name: `all of ${name}`, shift })) : [];
  const loras = meter.loras.map(({ name, shift, protected: exact }) => ({ name: exact ? `D ${name}` : name, shift }));
  return [...loras, ...passes];
}

function drawBars(meter, top) {
  const rows = bars(meter);
  const largest = Math.max(...rows.map(({ shift }) => shift ?? 0), meter.stable_below) || 1;
  return rows.map(({ name, shift }, row) => {
    const y = top + row * 14;
    return `<rect x="0" y="${y}" width="${(((shift ?? largest) / largest) * (WIDTH - 50)).toFixed(2)}" height="12" fill="${HEAT}" opacity="0.3"/>` +
      `<svg x="0" y="${y}" width="${WIDTH - 50}" height="13">${text(3, 10, name, { size: 10 })}</svg>` +
      text(WIDTH, y + 10, shiftText(shift), { size: 10, anchor: "end" });
  }).join("");
}

/** SVG of one expert, WIDTH units wide, as wide as its place; "" for one that has no meter. */
export function drawExpert({ role, name, meter }) {
  if (!meter) return "";
  const title = role === "model" ? name : `${role}  ${name}`;
  const sides = sideNeedles(meter).map(([letter, side, shift]) => `${letter}: ${side} ${shiftText(shift)}`).join(" · ");
  const loras = 78 + (sides ? 14 : 0);
  const heat = loras + bars(meter).length * 14 + 8;
  const height = heat + meter.kinds.length * (ROW + 2) + 16;
  const label = `${role === "model" ? "" : `${role}: `}${meter.status}, shift ${shiftText(judgedShift(meter))}${sides ? ` without distillation, ${sides}` : ""}`;
  const legacy = `over touched layers alone ${shiftText(meter.shift_touched)} · legacy ${legacyText(meter.legacy)}`;
  const colour = COLOURS[ZONES.indexOf(meter.status.toLowerCase())] ?? INK;
  const parts = [
    text(0, 15, meter.status, { size: 15, colour, weight: "bold" }),
    text(WIDTH, 15, shiftText(judgedShift(meter)), { size: 15, colour: INK, anchor: "end", weight: "bold" }),
    `<svg x="116" y="0" width="${WIDTH - 180}" height="20">${text(0, 14, title, { size: 10 })}</svg>`,
    drawGauge(meter, 28),
    text(0, 66, legacy, { size: 10 }),
    sides ? text(0, 80, `without distillation ${shiftText(judgedShift(meter))} · ${sides}`, { size: 10, colour: INK }) : "",
    drawBars(meter, loras),
    drawHeat(meter, heat),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="100%" role="img" aria-label="${escapeText(label)}" ` +
    `font-family="sans-serif">${parts.join("")}</svg>`;
}

/** The list of the most changed layers as HTML, folded. */
export function topLayers({ role, meter }) {
  if (!meter?.top?.length) return "";
  const rows = meter.top.map(({ layer, shift }) => `<li>${escapeText(layer)} ${shiftText(shift)}</li>`).join("");
  return `<details><summary>${role === "model" ? "" : `${escapeText(role)}: `}${meter.top.length} most changed layers</summary><ol>${rows}</ol></details>`;
}

/** HTML of a whole report. */
export function drawReport(report) {
  return (report.experts ?? []).map((expert) => drawExpert(expert) + topLayers(expert)).join("");
}
