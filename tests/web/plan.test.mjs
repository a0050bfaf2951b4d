/** Claims about web/plan.js, on plans written by hand as the node's message has them. */
import assert from "node:assert/strict";
import test from "node:test";

import { WIDTH } from "../../web/meter.js";
import { COLOURS, GGUF_COLOURS, cells, colourOf, drawExpert, drawPlan } from "../../web/plan.js";
import { assertWellFormed } from "./well_formed.mjs";

const KINDS = ["self_attn", "cross_attn"].flatMap((part) => ["q", "k", "v", "o"].map((name) => `${part}.${name}`)).concat("ffn.0", "ffn.2");
const row = (block) => KINDS.map((kind) => (kind.startsWith("ffn") ? "nvfp4" : block % 2 ? "float8_e4m3fn" : "nvfp4 16-bit"));
const HIGH = {
  role: "high_noise", title: "balanced-blackwell", bytes: 9123456789, error: 0.0712, kinds: KINDS, cells: Array.from({ length: 40 }, (_, block) => row(block)),
  formats: [{ name: "nvfp4", layers: 240, bytes: 4.6e9, error: 0.082 }, { name: "float8_e4m3fn", layers: 160, bytes: 4.2e9, error: null }],
  cards: ["RTX 50: 62 % FP4, 38 % FP8", "RTX 40: 100 % FP8"],
};
const LOW = { ...HIGH, role: "low_noise", error: null };
const small = (rows, changes = {}) => ({ ...HIGH, kinds: ["a", "b"], cells: rows, ...changes });
const plan = (...experts) => ({ version: 1, experts });
/** Every drawn cell as {x, y, width, colour, pale, title}, read back from the markup. */
const read = (html) => [...html.matchAll(/<title>([^<]*)<\/title><rect x="([\d.]+)" y="(\d+)" width="([\d.]+)" height="\d+" fill="([^"]*)"( opacity="0.35")?\/>/g)]
  .map(([, title, x, y, width, colour, pale]) => ({ title, x: Number(x), y: Number(y), width: Number(width), colour, pale: Boolean(pale) }));

test("a plan draws as well-formed markup, an SVG for each expert, its cards below it", () => {
  const html = drawPlan(plan(HIGH, LOW));
  assertWellFormed(html);
  assert.equal(html.match(/<svg xmlns/g).length, 2);
  assert.ok(html.includes("</svg><pre>RTX 50: 62 % FP4, 38 % FP8\nRTX 40: 100 % FP8</pre><svg xmlns"));
  assert.ok(drawPlan(plan({ ...HIGH, cards: [] })).endsWith("</svg>"));
});

test("the title tells role, size and error, and a lone file has no role", () => {
  assert.ok(drawExpert(HIGH).includes(">high_noise  balanced-blackwell<") && drawExpert(HIGH).includes(">9.12 GB · error 0.0712<"));
  assert.ok(drawExpert(LOW).includes(">9.12 GB<"));
  assert.ok(drawExpert({ ...LOW, bytes: 1_234_567 }).includes(">1.2 MB<"));
  assert.ok(drawExpert({ ...HIGH, role: "model" }).includes(">balanced-blackwell<"));
  assert.match(drawExpert(HIGH), /aria-label="high_noise {2}balanced-blackwell: 9\.12 GB · error 0\.0712; nvfp4 240 layers, float8_e4m3fn 160 layers"/);
});

test("the legend counts the layers and bytes of each format, and the layers with a product in 16 bit", () => {
  const html = drawExpert(HIGH);
  const texts = [...html.matchAll(/>([^<>]+)<\/text>/g)].map(([, content]) => content);
  const from = texts.indexOf("nvfp4");
  assert.deepEqual(texts.slice(from, from + 9), ["nvfp4", "240 layers", "4.60 GB", "error 0.0820", "float8_e4m3fn", "160 layers", "4.20 GB",
    "striped: product in 16 bit, 160 layers", "self_attn.q"]);
  assert.doesNotMatch(drawExpert(small([["nvfp4", "keep"]])), /striped/);
});

test("every layer has its cell at its block and kind, in the colour of its format, and says so when pointed at", () => {
  const drawn = read(drawExpert(HIGH));
  assert.equal(drawn.length, 400);
  const columns = [...new Set(drawn.map(({ x }) => x))].sort((a, b) => a - b);
  const rows = [...new Set(drawn.map(({ y }) => y))].sort((a, b) => a - b);
  assert.deepEqual([columns.length, rows.length], [40, 10]);
  for (const { title, x, y, colour, pale } of drawn) {
    const [block, kind] = [columns.indexOf(x), rows.indexOf(y)];
    const [format, wide] = HIGH.cells[block][kind].split(" ");
    assert.deepEqual([colour, pale], [COLOURS[format], wide === "16-bit"]);
    assert.equal(title, `blocks.${block}.${KINDS[kind]}: ${format}${wide ? ", product in 16 bit" : ""}`);
  }
});

test("a product in 16 bit is told by stripes, not by paleness alone", () => {
  const html = drawExpert(small([["nvfp4", "nvfp4 16-bit"]]));
  assert.deepEqual(read(html).map(({ colour, pale }) => [colour, pale]), [[COLOURS.nvfp4, false], [COLOURS.nvfp4, true]]);
  assert.equal(html.match(new RegExp(`<path d="[^"]*" stroke="${COLOURS.nvfp4}"`, "g")).length, 1);
});

test("forty blocks fit into the width and into the height, and their cells do not overlap", () => {
  const html = drawExpert(HIGH);
  const [, height] = /viewBox="0 0 \d+ (\d+)"/.exec(html);
  const first = read(html).filter(({ y }, _, all) => y === all[0].y).sort((a, b) => a.x - b.x);
  first.forEach(({ x, width }, n) => assert.ok(x + width <= (first[n + 1]?.x ?? WIDTH)));
  const [, legend] = /<text x="16" y="(\d+)"[^>]*>striped/.exec(html);
  assert.ok(Number(legend) < first[0].y); // the last line of the legend
  assert.ok(Math.max(...[...html.matchAll(/ y="(\d+)"/g)].map(([, y]) => Number(y))) <= Number(height));
});

test("a kind that a block has not is left empty", () => {
  const expert = small([["nvfp4", null], [null, "keep"]]);
  assert.deepEqual(cells(expert).map(({ block, kind }) => [block, kind]), [[0, 0], [1, 1]]);
  assert.deepEqual(read(drawExpert(expert)).map(({ title }) => title), ["blocks.0.a: nvfp4", "blocks.1.b: keep"]);
});

test("a format that the page does not know has a colour of its own and its name in the legend", () => {
  const html = drawExpert(small([["TQ1_0", "constructor 16-bit"]], { formats: [{ name: "TQ1_0", layers: 1, bytes: 1e9, error: null }] }));
  assertWellFormed(html);
  assert.ok(html.includes(">TQ1_0<") && html.includes("<title>blocks.0.a: TQ1_0</title>"));
  assert.equal(colourOf("TQ1_0"), colourOf("constructor"));
  assert.ok(!Object.values(COLOURS).includes(colourOf("TQ1_0")));
});

test("the types of a GGUF have the colours of the other formats, apart where one file holds both", () => {
  const html = drawExpert(small([["Q4_K", "Q6_K"]], { formats: [{ name: "Q4_K", layers: 1, bytes: 1e9, error: 0.07 }] }));
  assert.deepEqual(read(html).map(({ colour }) => colour), [GGUF_COLOURS.Q4_K, GGUF_COLOURS.Q6_K]);
  assert.ok(html.includes(">Q4_K<") && html.includes("<title>blocks.0.b: Q6_K</title>"));
  assert.ok(Object.values(GGUF_COLOURS).every((colour) => Object.values(COLOURS).includes(colour) && colour !== COLOURS.keep));
  const budget = ["Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0"];      // jobs/solve_budget.py
  const mixes = [["Q2_K", "Q3_K"], ["Q3_K", "Q4_K", "Q5_K"], ["Q4_K", "Q5_K", "Q6_K"], ["Q4_0", "Q4_1"], ["Q5_0", "Q5_1"]]; // gguf_mix.py
  const fallbacks = [["Q2_K", "IQ4_NL"], ["Q3_K", "IQ4_NL"], ["Q4_K", "Q5_0"], ["Q5_K", "Q5_1"], ["Q6_K", "Q8_0"]];
  for (const together of [budget, ...mixes, ...fallbacks]) assert.equal(new Set(together.map(colourOf)).size, together.length, together.join());
});

test("a text from a stranger's file stays text", () => {
  const evil = `"><img src=x onerror=alert(1)>&'`;
  const expert = { ...small([[evil, `${evil} 16-bit`]]), role: evil, title: evil, bytes: evil, error: evil, kinds: [evil, evil], cards: [evil],
    formats: [{ name: evil, layers: evil, bytes: evil, error: evil }] };
  for (const html of [drawPlan(plan(expert)), drawPlan({ version: evil })]) {
    assertWellFormed(html);
    assert.doesNotMatch(html, /<img/);
  }
});

test("a plan of another version draws nothing but a line that says so", () => {
  assert.equal(drawPlan({ version: 2, experts: [HIGH] }), "<p>precision plan of version 2: this page draws version 1, reload the page</p>");
  assert.match(drawPlan({ experts: [HIGH] }), /^<p>precision plan of version unknown: /);
});

test("a plan of nothing draws an expert without cells", () => {
  assertWellFormed(drawExpert({ ...HIGH, cells: [], kinds: [], formats: [], cards: [] }));
  assert.equal(drawPlan(plan()), "");
});

// Machado, Oliveira, Fernandes 2009, severity 1.0: what is left of linear RGB for each kind of sight.
const SIGHTS = {
  normal: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  protanopia: [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
  deuteranopia: [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
  tritanopia: [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
};

/** CIE L*a*b* (D65) of an sRGB colour as one kind of sight leaves it. */
function lab(colour, sight) {
  const linear = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const [r, g, b] = sight.map((line) => Math.min(Math.max(line.reduce((sum, share, n) => sum + share * linear[n], 0), 0), 1));
  const white = [0.95047, 1, 1.08883];
  const xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]].map(([p, q, s], n) => (p * r + q * g + s * b) / white[n]);
  const [x, y, z] = xyz.map((t) => (t > 216 / 24389 ? Math.cbrt(t) : ((24389 / 27) * t + 16) / 116));
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

test("colours stay apart from each other and from a dark and a light theme for every kind of sight", () => {
  const backgrounds = ["#353535", "#242730", "#161b22", "#13171d", "#073642", "#f5f5f5"]; // NODE_DEFAULT_BGCOLOR in ComfyUI's own palettes
  const colours = Object.values(COLOURS);
  assert.equal(colours.length, 8);
  for (const [name, sight] of Object.entries(SIGHTS)) {
    colours.forEach((colour, n) => [...colours.slice(n + 1), ...backgrounds].forEach((other) => {
      const distance = Math.hypot(...lab(colour, sight).map((value, axis) => value - lab(other, sight)[axis]));
      assert.ok(distance > 20, `${name}: ${colour} ${other} ${distance}`); // 2.3 is just noticeable side by side; cells are small and apart
    }));
  }
});
