/** Claims about web/meter.js, on the report that the engine wrote (tests/golden/report.json) and on reports made worse on purpose. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { assertWellFormed } from "./well_formed.mjs";
import { WIDTH, bars, cells, drawExpert, drawReport, gauge, judgedShift, legacyText, shiftText, sideNeedles, topLayers } from "../../web/meter.js";

const golden = JSON.parse(readFileSync(new URL("../golden/report.json", import.meta.url)));
const [high, low] = golden.experts;
const withMeter = (expert, changes) => ({ ...expert, meter: { ...expert.meter, ...changes } });

test("the golden report draws as well-formed markup, an SVG for each expert", () => {
  const html = drawReport(golden);
  assertWellFormed(html);
  assert.equal(html.match(/<svg xmlns/g).length, 2);
});

test("the status is a word and the shift a number, not colour alone", () => {
  assert.match(drawExpert(high), />STABLE</);
  assert.match(drawExpert(low), />VOLATILE</);
  assert.ok(drawExpert(low).includes(`>${low.meter.needles.rest.toFixed(4)}<`));
  assert.match(drawExpert(low), /aria-label="low_noise: VOLATILE, shift 0\.\d{4} without distillation, /);
  for (const word of ["stable", "saturated", "volatile"]) assert.ok(drawExpert(high).includes(` ${word}<`));
});

test("a model that is one file is drawn without the word high or low", () => {
  const html = drawReport({ experts: [{ ...high, role: "model", name: "wan_5b.safetensors", meter: { ...high.meter, loras: [] } }] });
  assert.doesNotMatch(html, /high|low_noise/);
});

test("the zones of the gauge meet at the thresholds and the needle stands at the shift", () => {
  const { zones, needle, beyond } = gauge({ shift: 0.03, stable_below: 0.015, volatile_above: 0.03 });
  assert.deepEqual(zones.map(({ start, stop }) => [start, stop].map((x) => Math.round(x * 1e6) / 1e6)), [[0, 0.333333], [0.333333, 0.666667], [0.666667, 1]]);
  assert.equal(Math.round(needle * 1e6) / 1e6, 0.666667);
  assert.equal(beyond, false);
});

test("a shift off the scale stays at the end of the gauge and says so", () => {
  const needles = { all: 1, distillation: 0.01, rest: 1 };
  assert.deepEqual([gauge({ ...low.meter, needles }).needle, gauge({ ...low.meter, needles }).beyond], [1, true]);
  assert.match(drawExpert(withMeter(low, { needles })), /off the scale/);
});

test("there is a cell for every block and kind, and one above the volatile bound carries a cross", () => {
  const drawn = cells(low.meter);
  assert.equal(drawn.length, low.meter.blocks * low.meter.kinds.length);
  assert.deepEqual(drawn.find(({ block, kind }) => block === 2 && kind === 1).shift, low.meter.cells[2][1]);
  assert.equal(drawExpert(low).match(/<path d="[^"]*" stroke=/g).length, drawn.filter(({ above }) => above).length);
  assert.ok(cells(high.meter).every(({ above }) => !above));
});

test("every cell tells its layer and number when pointed at", () => {
  assert.ok(drawExpert(high).includes(`<title>blocks.3.ffn: ${high.meter.cells[3][2].toFixed(4)}</title>`));
});

test("forty blocks fit into the width", () => {
  const forty = withMeter(high, { blocks: 40, cells: Array(40).fill([0.01, 0.02, 0.04]) });
  const ends = [...drawExpert(forty).matchAll(/<rect x="([\d.]+)" y="\d+" width="([\d.]+)" height="16"/g)].map(([, x, width]) => Number(x) + Number(width));
  assert.equal(ends.length, 240);
  assert.ok(Math.max(...ends) <= WIDTH);
});

test("passes are drawn when there are several, and not when there is one", () => {
  assert.deepEqual(bars(low.meter).map(({ name }) => name).slice(3), ["all of Pass 1", "all of Pass 2"]);
  assert.equal(bars({ ...low.meter, passes: low.meter.passes.slice(0, 1) }).length, 3);
});

test("three needles where a distillation LoRA is merged: the large one and the word are of the rest", () => {
  const needles = { all: 0.04, distillation: 0.03, rest: 0.009 };
  const meter = { ...low.meter, needles };
  assert.equal(gauge(meter).needle, 0.009 / 0.045);
  assert.deepEqual(gauge(meter).sides.map(({ letter, place }) => [letter, place.toFixed(4)]), [["D", (0.03 / 0.045).toFixed(4)], ["A", (0.04 / 0.045).toFixed(4)]]);
  const html = drawExpert({ ...low, meter });
  assertWellFormed(html);
  assert.ok(html.includes(">without distillation 0.0090 · D: distillation 0.0300 · A: all 0.0400<"));
  assert.ok(html.includes(">D lightx2v_4steps_low_noise.safetensors<"));
});

test("one needle where there is none, and in a reading of the version that knew only one", () => {
  const loras = low.meter.loras.map((lora) => ({ ...lora, protected: false }));
  assert.deepEqual(sideNeedles({ ...low.meter, loras }), []);
  assert.doesNotMatch(drawExpert(withMeter(low, { loras })), /distillation/);
  const { needles, ...old } = low.meter;
  assert.equal(judgedShift(old), low.meter.shift);
  assert.deepEqual(gauge(old).sides, []);
  assert.ok(needles);
});

test("a name from a stranger's file stays text", () => {
  const name = `"><img src=x onerror=alert(1)>&'.safetensors`;
  const hostile = { role: name, name, meter: { ...high.meter, loras: [{ name, shift: 0.1 }], top: [{ layer: name, shift: 0.1 }], kinds: [name, "b", "c"] } };
  const html = drawReport({ experts: [hostile] });
  assertWellFormed(html);
  assert.doesNotMatch(html, /<img/);
});

test("numbers that are not finite come as null and are called unknown", () => {
  assert.equal(shiftText(null), "unknown");
  assert.equal(legacyText(null), "unknown");
  assertWellFormed(drawExpert(withMeter(high, { needles: { all: null, distillation: null, rest: null }, legacy: null, cells: high.meter.cells.map((row) => row.map(() => null)) })));
});

test("an expert without a meter draws nothing, a model without LoRAs draws its gauge", () => {
  assert.equal(drawReport({ experts: [{ role: "model", name: "x" }] }), "");
  assert.equal(drawReport({}), "");
  assertWellFormed(drawExpert(withMeter(high, { shift: 0, loras: [], passes: [], blocks: 0, cells: [], top: [] })));
});

test("the most changed layers are listed in the order of the report", () => {
  const html = topLayers(low);
  assertWellFormed(html);
  assert.ok(html.indexOf(low.meter.top[0].layer) < html.indexOf(low.meter.top[1].layer));
  assert.equal(html.match(/<li>/g).length, low.meter.top.length);
});
