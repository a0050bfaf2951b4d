/** Claims about web/conflicts.js, on the analysis that the engine wrote (tests/golden/report.json) and on worse ones. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { cosineText, drawConflicts, drawExpert, drawMatrix, drawNotes, drawStrip, excessText, predicted, standsOut, worst } from "../../web/conflicts.js";
import { WIDTH } from "../../web/meter.js";
import { assertWellFormed } from "./well_formed.mjs";

const golden = JSON.parse(readFileSync(new URL("../golden/report.json", import.meta.url)));
const [high, low] = golden.experts;
const withSection = (expert, changes) => ({ ...expert, conflicts: { ...expert.conflicts, ...changes } });
const fighting = withSection(low, { pairs: low.conflicts.pairs.map((pair, n) => (n === 2 ? { ...pair, excess: 0.125, se: 0.004, cosine: -0.25 } : pair)) });

test("the golden analysis draws as well-formed markup, an SVG for each expert", () => {
  const html = drawConflicts(golden);
  assertWellFormed(html);
  assert.equal(html.match(/<svg xmlns/g).length, 2);
});

test("each pair has its cosine above and its excess conflict below the diagonal, as numbers", () => {
  const { pairs } = fighting.conflicts;
  const html = drawMatrix(fighting.conflicts, 0);
  assert.equal(html.match(/<title>/g).length, 2 * pairs.length);
  assert.ok(html.includes(">−0.25<") && html.includes(">12.5±0.4<"));
  for (const pair of pairs) assert.ok(html.includes(`>${cosineText(pair.cosine)}<`) && html.includes(`>${excessText(pair)}<`));
  const [first] = pairs;
  assert.ok(html.includes(`excess conflict ${excessText(first)} % (opposite signs ${(100 * first.conflict).toFixed(1)} %`));
});

test("a conflict stands out by a frame and in words, not by brightness alone, when it is large and no luck", () => {
  assert.equal(drawMatrix(low.conflicts, 0).includes("stroke-width"), false);
  assert.equal(drawMatrix(fighting.conflicts, 0).match(/stroke-width/g).length, 1);
  assert.match(drawExpert(fighting), /aria-label="low_noise: 1 of 3 pairs conflict beyond chance, /);
  assert.deepEqual([{ excess: 0.05, se: 0.02 }, { excess: 0.019, se: 0 }, { excess: null, se: null }].map(standsOut), [false, false, false]);
  assert.deepEqual(worst(fighting.conflicts).map(({ excess }) => excess), [0.125]);
  assertWellFormed(drawNotes(fighting));
  assert.match(drawNotes(fighting), /<li>2 lightx2v_4steps_low_noise.safetensors × 3 kohya_lora_low_noise.safetensors: cosine −0.25/);
});

test("a distillation LoRA is marked by a letter", () => {
  assert.match(drawExpert(high), />2 D {2}strength 1, norm [\d.]+ {2}lightx2v_4steps_high_noise\.safetensors</);
});

test("every block has a bar in both strips, within the width, and the largest is written", () => {
  const forty = withSection(high, { by_block: Array(40).fill({ excess: 0.01, se: 0.005 }), shift: null, moved: { ...high.conflicts.moved, cells: Array(40).fill([3, 0, 4]) } });
  const html = drawExpert(forty);
  const bars = [...html.matchAll(/<rect x="([\d.]+)" width="([\d.]+)" y="\d+" height="36"/g)].map(([, x, width]) => Number(x) + Number(width));
  assert.equal(bars.length, 80);
  assert.ok(Math.max(...bars) <= WIDTH);
  assert.match(html, /excess conflict by block, all pairs, largest bar 1\.5 %/);
  assert.match(html, /size of all changes by block, largest bar 5\.0000/);
  assert.ok(html.includes("<title>block 39: 1.0 % ± 0.5 %</title>"));
});

test("a bar of the largest value fills the strip and one of nothing is flat", () => {
  const html = drawStrip([{ value: 2 }, { value: 0 }, { value: null }], 0, { name: "n", write: String });
  assert.match(html, /y="14\.00" height="36\.00"/);
  assert.equal(html.match(/y="50\.00" height="0\.00"/g).length, 2);
  assertWellFormed(drawStrip([{ value: 0 }], 0, { name: "n", write: String }));
});

test("the movement is a shift where the base is known and a size where not", () => {
  const { shift, moved } = high.conflicts;
  assert.equal(predicted(high.conflicts), `shift as measured ${shift.all.toFixed(4)} (distillation ${shift.distillation.toFixed(4)}, rest ${shift.rest.toFixed(4)})`);
  assert.match(predicted({ ...high.conflicts, shift: { ...shift, from: "base norms" } }), /^predicted shift /);
  assert.ok(predicted({ ...high.conflicts, shift: null }).startsWith(`size of all changes ${moved.all.toFixed(4)}`));
});

test("what was not analysed is told", () => {
  const left = [{ lora: "a.safetensors", kind: "dora", reason: "depends on the weights of the base", tensors: 7 }];
  assert.match(drawNotes(withSection(low, { left_out: left })), /<li>not analysed: a\.safetensors: dora in 7 tensors: depends on/);
  assert.equal(drawNotes(low), "");
});

test("a name from a stranger's file stays text", () => {
  const name = `"><img src=x onerror=alert(1)>&'.safetensors`;
  const loras = fighting.conflicts.loras.map((lora) => ({ ...lora, name }));
  const hostile = { ...withSection(fighting, { loras, left_out: [{ lora: name, kind: name, reason: name, tensors: 1 }] }), name, role: name };
  const html = drawConflicts({ experts: [hostile] });
  assertWellFormed(html);
  assert.doesNotMatch(html, /<img/);
});

test("an expert without LoRAs says so, pairs that never meet get a dash, and no section draws nothing", () => {
  const empty = withSection(low, { loras: [], pairs: [] });
  assert.equal(drawConflicts({ experts: [empty] }), `<p>${low.name}: no LoRAs to compare</p>`);
  const apart = { cosine: null, overlap_out: null, overlap_in: null, conflict: null, chance: null, excess: null, se: null };
  const html = drawExpert(withSection(low, { pairs: low.conflicts.pairs.map((pair) => ({ ...pair, ...apart })) }));
  assertWellFormed(html);
  assert.equal(html.match(/>–</g).length, 6);
  assert.equal(drawConflicts({ experts: [{ role: "model", name: "x" }] }) + drawConflicts({}), "");
});

test("forty LoRAs still fit into the width", () => {
  const loras = Array(40).fill(low.conflicts.loras[0]);
  const pairs = loras.flatMap((_, j) => loras.slice(j + 1).map((_lora, k) => ({ ...low.conflicts.pairs[0], first: j, second: j + 1 + k })));
  const html = drawMatrix({ ...low.conflicts, loras, pairs }, 0);
  const ends = [...html.matchAll(/<rect x="([\d.]+)" y="\d+" width="([\d.]+)"/g)].map(([, x, width]) => Number(x) + Number(width));
  assert.ok(Math.max(...ends) <= WIDTH);
});
